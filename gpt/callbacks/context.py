"""What callbacks ask of the run that they belong to."""

from pathlib import Path
from typing import cast

import lightning as L

from gpt.data import Data
from gpt.model import GPT


def is_training(trainer: L.Trainer) -> bool:
    """Whether this is a training run. Evaluating a finished model calls the same validation hooks."""
    return trainer.state.fn == "fit"


def checkpoint_path(trainer: L.Trainer, name: str) -> Path:
    """Where a run keeps its checkpoint called `best` or `last`."""
    return Path(trainer.default_root_dir) / "checkpoints" / f"{name}.ckpt"


def model_of(module: L.LightningModule) -> GPT:
    """The GPT that a GPTModule trains."""
    return cast(GPT, module.model)


def data_of(trainer: L.Trainer) -> Data:
    """The data that a run trains on."""
    return cast(Data, trainer.datamodule)  # type: ignore[attr-defined]
