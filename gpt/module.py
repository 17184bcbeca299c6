"""The GPT as Lightning trains it: loss, what is logged, optimizer and schedule, and what a checkpoint says about itself."""

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt.checkpoint import moved
from gpt.data import Batch
from gpt.logger import MetricsFile
from gpt.model import GPT
from gpt.optim import AdamWConfig, SchedulerConfig, build_optimizer, lr_multiplier
from gpt.settings import UserError


class GPTModule(L.LightningModule):
    """Wraps `model`; to validate, it is enough.

    `card` is what `gpt.checkpoint` needs to make the model again: plain types, stored under "gpt". `lengths` (2, V): characters
    and bytes of each token, by which losses compare between tokenizers; None: one each.
    """

    def __init__(
        self,
        model: GPT,
        optimizer: AdamWConfig | None = None,
        scheduler: SchedulerConfig | None = None,
        card: dict[str, Any] | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        super().__init__()
        lengths = torch.ones(2, model.config.vocab_size, dtype=torch.int64) if lengths is None else lengths
        self.register_buffer("lengths", lengths, persistent=False)
        self.model, self.card = model, card
        self.optimizer_config, self.scheduler_config = optimizer, scheduler
        self.latest_loss: Tensor | float = math.nan  # of training

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy in nats per token, which in general is a character."""
        inputs, targets = batch
        return F.cross_entropy(self.model(inputs).flatten(0, 1), targets.flatten())

    @property
    def is_logged(self) -> bool:
        """Whether Lightning keeps what this step logs. The rest is not even logged: that took a fourth of model=tiny's time."""
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.latest_loss = loss.detach()
        if self.is_logged:
            self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss = self.loss(batch)
        if not loss.isfinite():  # before it can become a checkpoint
            raise self.diverged("val/loss", loss)
        # Lightning averages over batches and processes, weighted by batch size: every position counts the same. In float64,
        # so that the order in which they are added, which is another with several processes, does not show; and with sizes
        # that these divide, as it takes the mean of the sizes, too, and cuts it to a whole number
        loss = loss.double() if loss.device.type != "mps" else loss
        average = partial(self.log, on_epoch=True, sync_dist=True)
        world, tokens = self.trainer.world_size, batch[1].numel()
        average("val/loss", loss, prog_bar=True, batch_size=world * len(batch[0]))
        for unit, count in zip(("char", "byte"), self.lengths[:, batch[1]].sum(dim=(1, 2)).tolist(), strict=True):
            count = max(count, 1)
            average(f"val/bits_per_{unit}", loss / math.log(2) * (tokens / count), batch_size=world * count)

    def diverged(self, name: str, value: Tensor) -> UserError:
        trainer = self.trainer
        if not trainer.optimizers:  # a finished model, which is only validated
            return UserError(f"{name} = {value:.4g}: not finite; use an earlier checkpoint")
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        good = f", its last good checkpoint is {last}" if last.exists() else ""
        return UserError(
            f"{name} = {value:.4g}: not finite at step {trainer.global_step} (train/loss {self.latest_loss:.4g}, lr {lr:.2g}), "
            f"the run has diverged{good}; lower optimizer.lr, or optimizer.muon_lr, or look closer with trainer=debug"
        )

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(self.model, self.optimizer_config)
        max_steps = self.trainer.max_steps
        schedule = LambdaLR(optimizer, lambda step: lr_multiplier(step, max_steps, self.scheduler_config))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by total norm; the norm before clipping is logged, so it is computed once, clipping or not.

        Raises UserError if it is not finite, which a loss that is not makes it too: nothing after that would be training.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not norm.isfinite():
            raise self.diverged("train/grad_norm", norm)
        if self.is_logged:
            self.log("train/grad_norm", norm)
            self.log("lr", optimizer.param_groups[0]["lr"])  # one schedule multiplies all rates, so one curve says it

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["gpt"] = self.card
        for logger in self.trainer.loggers:  # so that what led to a checkpoint is on disk when the checkpoint is
            logger.write() if isinstance(logger, MetricsFile) else logger.save()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run whose folder was moved still knows its best checkpoint: Lightning forgets it where the path is another."""
        here = os.path.realpath(Path(self.trainer.default_root_dir) / "checkpoints")
        states = checkpoint.get("callbacks", {})
        states |= {name: moved(state, state["dirpath"], here) for name, state in states.items() if "dirpath" in state}

    def on_train_start(self) -> None:
        """A resumed optimizer has the rate of its old schedule, which was that of another length if max_steps was raised."""
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            for group, base, factor in zip(self.optimizers().param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
                group["lr"] = base * factor(schedule.last_epoch)


class ShardedGPTModule(GPTModule):
    """For trainer=fsdp: each process keeps its share of every weight, and gathers a block's when it is that block's turn."""

    def configure_model(self) -> None:
        for part in (*self.model.blocks, self.model):
            fully_shard(part)
