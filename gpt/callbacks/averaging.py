"""Averaged weights."""

from typing import Annotated, Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging
from pydantic import Field, validate_call


class EMA(EMAWeightAveraging):
    """Validates, samples and saves an exponential moving average of the weights.

    average <- decay * average + (1 - decay) * weights. Training continues with the weights themselves, which
    a checkpoint holds in addition to the average.
    """

    state_key = "ema"

    @validate_call
    def __init__(self, decay: Annotated[float, Field(gt=0, lt=1)]) -> None:
        super().__init__(decay=decay, use_buffers=False)  # the buffers are constants

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._latest_update_step = trainer.global_step  # every step updates the average
