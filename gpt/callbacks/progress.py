"""What a run shows while it trains: a line that is redrawn on a terminal, and a line for each validation
elsewhere.
"""

import sys
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import ProgressBar as LightningProgressBar
from tqdm import tqdm

from gpt.module import is_training


class Line(tqdm):
    monitor_interval = 0  # no thread: every step may redraw the line
    facts = ""  # what stands after the bar

    @property
    def format_dict(self) -> dict[str, Any]:
        """What `bar_format` may name."""
        return super().format_dict | {"facts": self.facts}


class ProgressBar(LightningProgressBar):
    """A run on one line of the terminal: optimizer steps of all of it, ETA, losses and speed.

    `prefix` stands before the line. It stays when the run ends if `leave` is set, and is erased otherwise.
    """

    def __init__(self, prefix: str = "", leave: bool = True) -> None:
        super().__init__()
        self.prefix, self.leave, self.is_enabled = prefix, leave, True
        self.first_step = 0  # where this process began
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

    def ending(self, trainer: L.Trainer) -> str:
        """What stands after the bar: the time that is left, judged by all steps, validations included."""
        done, left = trainer.global_step - self.first_step, trainer.max_steps - trainer.global_step
        elapsed = self.line.format_dict["elapsed"] if self.line is not None else 0.0
        return f"ETA {tqdm.format_interval(elapsed / done * left)}" if done else "ETA ?"

    def facts(self, trainer: L.Trainer) -> str:
        """The ending, and as many of the numbers known by now as there is room for, important ones first."""
        metrics = trainer.callback_metrics
        losses = {"train": "train/loss", "val": "val/loss"}
        facts = [f"{label} {metrics[name].item():.3f}" for label, name in losses.items() if name in metrics]
        if (speed := metrics.get("perf/chars_per_second")) is not None:
            facts.append(f"{speed / 1000:,.0f}k chars/s" if speed >= 1000 else f"{speed:.0f} chars/s")
        facts.insert(0, self.ending(trainer))
        counts = f"{self.prefix}{trainer.max_steps:,}/{trainer.max_steps:,} "
        room = ((self.line and self.line.format_dict["ncols"]) or 80) - len(counts) - 10  # for the bar itself
        while len(facts) > 1 and len("  ".join(facts)) > room:
            facts.pop()
        return "  ".join(facts)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first_step = trainer.global_step
        shown = {
            "bar_format": "{desc}{n:,}/{total:,} {bar}  {facts}",
            "dynamic_ncols": True,
            "file": sys.stdout,
        }
        steps = {"initial": trainer.global_step, "total": trainer.max_steps}
        self.line = Line(desc=self.prefix, leave=self.leave, disable=not self.is_enabled, **steps, **shown)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.line is not None and self.line.update(trainer.global_step - self.line.n):  # it was drawn
            self.line.facts = self.facts(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.line is not None:
            self.line.facts = self.facts(trainer)
            self.line.refresh()

    def on_train_end(self, *args: Any) -> None:
        self.close()

    def on_exception(self, *args: Any) -> None:
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
            losses = [f"{name} {metrics[name]:.4f}" for name in ("train/loss", "val/loss") if name in metrics]
            print(f"step {trainer.global_step:,} of {trainer.max_steps:,}  {'  '.join(losses)}", flush=True)
