"""Averaged weights."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from gpt.callbacks.state import check_state
from gpt.errors import UserError
from gpt.training_state import Damaged, check_tensors


class EMA(EMAWeightAveraging):
    """Validates, samples and saves an exponential moving average of the weights: average <- decay * average + (1 - decay) * w.

    Training goes on with the weights themselves, which a checkpoint holds beside the average.
    """

    state_key = "ema"

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay = {decay}: must be above 0 and below 1; set for instance 0.99")
        super().__init__(decay=decay, use_buffers=False)  # the buffers are constants

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        check_state("ema", state_dict, {})

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._latest_update_step = trainer.global_step  # every step updates the average

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Raises UserError unless the checkpoint holds both sets of weights, each with the names and shapes of the model's."""
        own = pl_module.state_dict()
        expected = {
            "state_dict": own,
            "current_model_state": own,
            "averaging_state": {"n_averaged": torch.tensor(0)},
        }
        try:
            for name, tensors in expected.items():
                check_tensors(checkpoint.get(name), tensors)
        except Damaged as error:
            reason = f"checkpoint = (state of ema): {error}"
            raise UserError(f"{reason}; use a checkpoint that this project wrote") from None
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
