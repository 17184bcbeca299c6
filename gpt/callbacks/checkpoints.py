"""The checkpoints of a run: its best, its last, and what each of them says about its run.

Lightning's ModelCheckpoint is not used: it restores paths from the checkpoint that it resumes from, and deletes them.
"""

from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint

from gpt.callbacks.context import checkpoint_path, is_training
from gpt.callbacks.run_logger import RunLogger
from gpt.callbacks.state import check_state


class BestCheckpoint(Checkpoint):
    """Writes checkpoints/best.ckpt after each validation that finds a new lowest `val/loss`.

    `score` is that loss (None before the first validation) and `step` the number of optimizer steps that it was found after.
    """

    state_key = "best"

    def __init__(self) -> None:
        self.score: float | None = None
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = check_state("best", state_dict, {"score": float | None, "step": int})
        self.score, self.step = state["score"], state["step"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_training(trainer):
            return
        score = trainer.callback_metrics["val/loss"].item()
        is_better = self.score is None or score < self.score
        if trainer.strategy.reduce_boolean_decision(is_better):  # all processes take part in saving
            self.score, self.step = score, trainer.global_step
            trainer.save_checkpoint(checkpoint_path(trainer, "best"))


class LastCheckpoint(Checkpoint):
    """Writes checkpoints/last.ckpt after each validation: this is where a run goes on."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_training(trainer):
            trainer.save_checkpoint(checkpoint_path(trainer, "last"))


class StoreMetadata(Callback):
    """Stores `metadata` in each checkpoint, under "gpt": what `gpt.checkpoint` needs to make the model again.

    Before that, it has the loggers write: what led to a checkpoint is on disk when the checkpoint is.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self.metadata = metadata

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["gpt"] = dict(self.metadata)
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.write()
