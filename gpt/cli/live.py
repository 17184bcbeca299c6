"""What a sweep or a search shows on a terminal while one of its runs trains: a live line, with the time that all of it needs."""

import shutil
import sys
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt.callbacks.progress import ProgressBar
from gpt.errors import shorten


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
    name = shorten(name, shutil.get_terminal_size().columns // 4)
    return [left, ProgressBar(prefix=f"{number} of {runs}  {name}  ", suffix=lambda: str(left), leave=False)]
