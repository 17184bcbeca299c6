"""Averaged weights."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from gpt.callbacks.state import check_state
from gpt.settings import UserError, shorten


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

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raises UserError unless the checkpoint holds both sets of weights, each with the names and shapes of the model's."""
        own = pl_module.state_dict()
        check_tensors(checkpoint.get("state_dict"), own)
        check_tensors(checkpoint.get("current_model_state"), own)
        check_tensors(checkpoint.get("averaging_state"), {"n_averaged": torch.tensor(0)})
        super().on_load_checkpoint(trainer, pl_module, checkpoint)


def check_tensors(state: object, expected: dict[str, Tensor]) -> None:
    """Raises UserError unless `state` is a dictionary of finite tensors with the names, shapes and types of the expected ones."""
    advice = "use a checkpoint that this project wrote"
    if not isinstance(state, dict) or state.keys() != expected.keys():
        raise UserError(f"checkpoint = (state of ema): other weights than the model's, or none; {advice}")
    for name, tensor in expected.items():
        value = state[name]
        is_plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
        if not (is_plain and value.shape == tensor.shape and value.dtype == tensor.dtype and value.isfinite().all()):
            found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else value
            raise UserError(f"checkpoint = (state of ema): {shorten(name)} is {shorten(found)}, which does not fit; {advice}")
