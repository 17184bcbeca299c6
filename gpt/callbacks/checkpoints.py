"""The checkpoints of a run: its best, its last, and what each of them says about its run.

Lightning's ModelCheckpoint is not used: it forgets the best score when the run's folder has moved.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint

from gpt.callbacks.loggers import RunLogger
from gpt.checkpoint import SUFFIX, read, refusal, write
from gpt.module import is_training

PREFIX = "model."  # of the names that Lightning has for the weights: they are attributes of GPTModule.model
NOT_STORED = ("epoch", "pytorch-lightning_version", "loops", "lr_schedulers")  # they follow from the step
WEIGHTS_ALONE = "weights_alone"  # a storage option: leave out what only training needs


class AtomicCheckpointIO(CheckpointIO):
    """Has Lightning write and read checkpoints in the format of `gpt.checkpoint`, whole at any time."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
        content = {"gpt": checkpoint["gpt"], "state_dict": weights}
        if storage_options != WEIGHTS_ALONE:
            content |= {key: value for key, value in checkpoint.items() if key not in (*NOT_STORED, *content)}
        try:
            write(Path(path), content)
        except TypeError as error:  # the state of somebody's callback
            raise refusal(Path(path), f"not written, {error}", "let its state be plain values") from None

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """What Lightning continues from. Its counters and schedules follow from the step: see ResumeAtStep."""
        content = read(Path(path))
        weights = {PREFIX + name: tensor for name, tensor in content["state_dict"].items()}
        expected = {"pytorch-lightning_version": L.__version__, "loops": None, "lr_schedulers": []}
        return content | expected | {"state_dict": weights}

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


def checkpoint_path(trainer: L.Trainer, name: str) -> Path:
    """Where a run keeps its checkpoint called `best` or `last`."""
    return Path(trainer.default_root_dir) / "checkpoints" / f"{name}{SUFFIX}"


class BestCheckpoint(Checkpoint):
    """Writes checkpoints/best.safetensors after each validation that finds a new lowest `val/loss`.

    `score` is that loss, None before the first validation, and `step` how many steps had been taken by then.
    """

    state_key = "best"

    def __init__(self) -> None:
        self.score: float | None = None
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.score, self.step = state_dict["score"], state_dict["step"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_training(trainer):
            return
        score = trainer.callback_metrics["val/loss"].item()
        is_better = self.score is None or score < self.score
        if trainer.strategy.reduce_boolean_decision(is_better):  # all processes take part in saving
            self.score, self.step = score, trainer.global_step
            trainer.save_checkpoint(checkpoint_path(trainer, "best"), storage_options=WEIGHTS_ALONE)


class LastCheckpoint(Checkpoint):
    """Writes checkpoints/last.safetensors after each validation: this is where a run continues."""

    state_key = "last"

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
        checkpoint["gpt"] = dict(self.metadata) | {"step": trainer.global_step}
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.write()
