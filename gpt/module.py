"""The GPT as Lightning trains it: loss, what is logged, optimizer and schedule, and what a checkpoint says about itself."""

import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt.data import Batch
from gpt.model import GPT
from gpt.optim import AdamWConfig, SchedulerConfig, build_optimizer, lr_multiplier


class GPTModule(L.LightningModule):
    """Wraps `model`. `card` is what `gpt.checkpoint` needs to make the model again: plain types, stored under "gpt"."""

    def __init__(self, model: GPT, optimizer: AdamWConfig, scheduler: SchedulerConfig, card: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.card = model, card
        self.optimizer_config, self.scheduler_config = optimizer, scheduler

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats per character."""
        inputs, targets = batch
        return F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss = self.loss(batch)
        # Lightning averages over batches and processes, weighted by batch size: every position counts the same
        average = dict(batch_size=len(batch[0]), on_epoch=True, sync_dist=True)
        self.log("val/loss", loss, prog_bar=True, **average)
        self.log("val/bits_per_char", loss / math.log(2), **average)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(self.model, self.optimizer_config)
        max_steps = self.trainer.max_steps
        schedule = LambdaLR(optimizer, lambda step: lr_multiplier(step, max_steps, self.scheduler_config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by total norm; the norm before clipping is logged, so it is computed once, clipping or not."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        self.log("train/grad_norm", norm)
        self.log("lr", optimizer.param_groups[0]["lr"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gpt"] = self.card
