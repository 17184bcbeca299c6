"""Fully sharded data parallel training (trainer=fsdp): each process keeps only its share of every weight."""

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from gpt.config import RunConfig
from gpt.module import GPTModule
from gpt.settings import UserError


class ShardedGPTModule(GPTModule):
    """A GPTModule whose weights are shared out. A block's weights are gathered when it is that block's turn."""

    def configure_model(self) -> None:
        for part in (*self.model.blocks, self.model):
            fully_shard(part)

    def clip_gradients_to_norm(self, max_norm: float) -> Tensor:
        norm = super().clip_gradients_to_norm(max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def exact_logits(self, inputs: Tensor) -> Tensor:
        # The weights are gathered by a call, and only by a call. "force_eager" keeps it from being compiled
        with torch.autocast(inputs.device.type, enabled=False), torch.compiler.set_stance("force_eager"):
            return self.model(inputs)


def make_strategy() -> ModelParallelStrategy:
    """The strategy that goes with ShardedGPTModule. Its checkpoints are whole files, like those of any other run."""
    return ModelParallelStrategy(save_distributed_checkpoint=False)


def check_supported(config: RunConfig) -> None:
    """Raises UserError for settings that need a whole weight in one place."""
    if config.optimizer.name == "muon" or "ema" in config.callbacks:
        raise UserError(
            "trainer.strategy = fsdp: gives each process a part of every weight, and Muon and averaging need all of it; "
            "set optimizer=adamw, and callbacks=default"
        )
