"""What a run shows while it trains: one line that is redrawn on a terminal, and a line for each validation elsewhere."""

import sys
from collections.abc import Callable
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from tqdm import tqdm

from gpt.callbacks.context import is_training

NARROWEST = 10  # columns of the bar itself, below which the last numbers are left out


class Line(tqdm):
    """A tqdm bar that is followed by as many of `facts()` as the terminal has room for, and by `suffix()` or else the ETA."""

    monitor_interval = 0  # no thread: every step may redraw the line

    def __init__(
        self, facts: Callable[[], list[str]], suffix: Callable[[], str] | None, **settings: Any
    ) -> None:
        self.facts, self.suffix = facts, suffix
        ending = "{facts}  {suffix}" if suffix else " ETA {remaining}{facts}"
        # Without smoothing, the ETA is judged by all the steps since the bar began, validations included
        always = {
            "bar_format": "{desc}{n:,}/{total:,} {bar}" + ending,
            "dynamic_ncols": True,
            "miniters": 1,
            "smoothing": 0,
        }
        super().__init__(**always, **settings)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What `bar_format` may name. It is computed only when the line is drawn."""
        values = super().format_dict
        facts, suffix = self.facts(), self.suffix() if self.suffix else ""
        room = values["ncols"] or 80
        room -= len(f"{self.desc}{self.total:,}/{self.total:,}  {suffix or 'ETA 0:00:00'}") + NARROWEST
        while sum(len(fact) + 2 for fact in facts) > room:
            facts.pop()
        return values | {"facts": "".join(f"  {fact}" for fact in facts), "suffix": suffix}


class ProgressBar(LightningProgressBar):
    """A run on one line of the terminal: optimizer steps of all of it, ETA, losses and speed.

    `prefix` stands before the line, and `suffix()` in place of the ETA. The line stays when the run ends if `leave` is set, and
    is erased otherwise.
    """

    def __init__(self, prefix: str = "", suffix: Callable[[], str] | None = None, leave: bool = True) -> None:
        super().__init__()
        self.prefix, self.suffix, self.leave = prefix, suffix, leave
        self.is_enabled = True
        self.line: Line | None = None

    def disable(self) -> None:
        """Lightning calls this in all processes but the first."""
        self.is_enabled = False

    def enable(self) -> None:
        self.is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Lightning's `print` of a module comes here. A run prints only its last words, so the line ends."""
        self.close()
        print(*args, **kwargs)

    def facts(self) -> list[str]:
        """The numbers that are known by now, the most important ones first."""
        metrics = self.trainer.callback_metrics
        losses = {"train": "train/loss", "val": "val/loss"}
        facts = [f"{label} {metrics[name].item():.3f}" for label, name in losses.items() if name in metrics]
        if (speed := metrics.get("perf/chars_per_second")) is not None:
            facts.append(f"{speed / 1000:,.0f}k chars/s" if speed >= 1000 else f"{speed:.0f} chars/s")
        return facts

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.line = Line(
            self.facts,
            self.suffix,
            desc=self.prefix,
            initial=trainer.global_step,
            total=trainer.max_steps,
            leave=self.leave,
            disable=not self.is_enabled,
            file=sys.stdout,
        )

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.line is not None:
            self.line.update(trainer.global_step - self.line.n)  # 0 while gradients are accumulated

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.line is not None:
            self.line.refresh()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cursor at the beginning of a line. From now on nothing is drawn."""
        if self.line is not None:
            self.line.close()


class ProgressLines(Callback):
    """Plain progress lines when stdout is not a terminal: one per validation."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and is_training(trainer):
            metrics = trainer.callback_metrics
            losses = "  ".join(
                f"{name} {metrics[name]:.4f}" for name in ("train/loss", "val/loss") if name in metrics
            )
            print(f"step {trainer.global_step:,} of {trainer.max_steps:,}  {losses}", flush=True)
