"""What a sweep or a search shows on a terminal while one of its runs trains: a live line, with the time that all of it needs."""

import shutil
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt.settings import shorten


class ProgressBar(Callback):
    """A run's step and loss on one line between two texts, which is erased when the run ends."""

    def __init__(self, prefix: str = "", suffix: Callable[[], str] | str = "") -> None:
        self.prefix = prefix
        self.suffix = suffix
        self.drawn = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if time.monotonic() - self.drawn > 0.1 or trainer.global_step == trainer.max_steps:
            self.drawn = time.monotonic()
            suffix = self.suffix() if callable(self.suffix) else self.suffix
            loss = trainer.callback_metrics.get("train/loss")
            shown = "" if loss is None else f"  loss {loss.item():.3f}"
            line = f"{self.prefix}step {trainer.global_step:,} of {trainer.max_steps:,}{shown}  {suffix}"
            print(f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K", end="", flush=True)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        print("\r\x1b[K", end="", flush=True)

    def on_exception(self, *args: Any) -> None:
        self.teardown()


class TimeLeft(Callback):
    """How long a sweep needs for its remaining runs, judged by those that were trained since it started, and the present one."""

    def __init__(self, started: float, trained: int, left: int) -> None:
        self.started, self.trained, self.left = started, trained, left  # `left` counts the present run
        self.first_step, self.share = 0, 0.0  # where the present run began, and how much of it is done

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first_step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.share = (trainer.global_step - self.first_step) / (trainer.max_steps - self.first_step)

    def __str__(self) -> str:
        """Empty as long as too little is known, and at the end."""
        done, left = self.trained + self.share, self.left - self.share
        if done < 0.05 or left <= 0:  # the first steps take longer than others
            return ""
        return f"all done in {timedelta(seconds=round((time.time() - self.started) / done * left))}"


def live_line(number: int, runs: int, name: str, left: TimeLeft) -> list[Callback]:
    """The callbacks that show a run while it trains. None of them if there is no terminal."""
    if not sys.stdout.isatty():
        return []
    name = shorten(name, shutil.get_terminal_size().columns // 3)
    return [left, ProgressBar(prefix=f"{number} of {runs}  {name}  ", suffix=lambda: str(left))]
