"""The GPT as Lightning trains it: its loss, what is logged, its optimizer and its schedule."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gpt.config import AdamWConfig, SchedulerConfig
from gpt.data import Batch
from gpt.errors import UserError
from gpt.model import GPT
from gpt.optim import build_optimizer, lr_multiplier

if TYPE_CHECKING:
    from gpt.data import Data
    from gpt.result import Result


class Diverged(UserError):
    """The loss or the norm of the gradients is inf or nan."""


class GPTModule(L.LightningModule):
    """A GPT and how to train it. To validate one, `model` and `lengths` are enough.

    `lengths` (2, V) are the characters and bytes in each token, by which losses compare between tokenizers.
    None means that every token is one character of one byte.
    """

    lengths: Tensor

    def __init__(
        self,
        model: GPT,
        optimizer: AdamWConfig | None = None,
        scheduler: SchedulerConfig | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        super().__init__()
        if lengths is None:
            lengths = torch.ones(2, model.config.known_vocab_size(), dtype=torch.int64)
        self.register_buffer("lengths", lengths, persistent=False)
        self.model, self.optimizer_config, self.scheduler_config = model, optimizer, scheduler
        # Of the current step, for the log
        self.step_loss, self.grad_norm, self.lr = torch.tensor(math.nan), torch.tensor(math.nan), math.nan

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy of a batch, in nats per token (which usually is a character)."""
        inputs, targets = batch
        return cross_entropy(self.model(inputs), targets)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, batches = self.loss(batch), self.trainer.accumulate_grad_batches
        share = loss.detach().float() / batches
        self.step_loss = share if batch_idx % batches == 0 else self.step_loss + share
        return loss

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, *args: Any, **kwargs: Any
    ) -> None:
        """Clip the gradients to a total norm, if one is set, and keep the norm that they had for the log.

        Raises Diverged if the norm is not finite, as it is whenever the loss is not.
        """
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        self.lr = optimizer.param_groups[0]["lr"]
        if not self.grad_norm.isfinite():
            raise self.diverged("train/grad_norm", self.grad_norm)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the step if Lightning is about to write it. All steps would take a quarter of tiny's time."""
        if self.is_logged(batch_idx):
            self.log("train/loss", self.step_loss, prog_bar=True, sync_dist=True)
            self.log("train/grad_norm", self.grad_norm)
            self.log("lr", self.lr)  # of the first group: one schedule multiplies all rates

    def is_logged(self, batch_idx: int) -> bool:
        """Whether this batch ends a step that is written: one in `log_every_n_steps`, and a last one."""
        trainer = self.trainer
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        ends_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        return ends_step and (trainer.global_step % interval == 0 or trainer.should_stop)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        inputs, targets = batch
        if not len(inputs):  # nothing is held out: data.val_fraction=0
            return
        # In float32, whatever the training precision, so that validating again gives the same loss. By
        # `forward` rather than a call, which may be compiled and round differently
        with torch.autocast(inputs.device.type, enabled=False):
            loss = cross_entropy(self.model.forward(inputs), targets)
        if not loss.isfinite():  # raised before the weights can become a checkpoint
            raise self.diverged("val/loss", loss)
        # Lightning averages over batches and processes, weighted by size, so that every position counts the
        # same: in float64, to hide that several processes add in another order. It averages the sizes, too,
        # and cuts that to a whole number, so they have to be multiples of the number of processes
        loss = loss.double() if loss.device.type != "mps" else loss
        average = partial(self.log, on_epoch=True, sync_dist=True)
        processes, tokens = self.trainer.world_size, targets.numel()
        average("val/loss", loss, prog_bar=True, batch_size=processes * len(inputs))
        counts = self.lengths[:, targets].sum(dim=(1, 2)).clamp(min=1).tolist()
        for unit, count in zip(("char", "byte"), counts, strict=True):
            bits = loss / math.log(2) * (tokens / count)
            average(f"val/bits_per_{unit}", bits, batch_size=processes * count)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if table := data_of(self.trainer).draft:
            checkpoint["draft"] = table

    def diverged(self, name: str, value: Tensor) -> Diverged:
        """The error for a value that is not finite, with what was known of the step."""
        reason = f"{name} = {value:.4g}: not finite"
        if not self.trainer.optimizers:  # a finished model that is only validated
            return Diverged(f"{reason}; use an earlier checkpoint")
        known = f"at step {self.trainer.global_step} (train/loss {self.step_loss:.4g}, lr {self.lr:.2g})"
        advice = "lower optimizer.lr or optimizer.muon_lr, or look closer with trainer=debug"
        return Diverged(f"{reason} {known}, the run has diverged; {advice}")

    def complete(self, result: "Result", data: "Data", best: Path | None) -> "Result":
        """The result of a run with what is measured once, at its end, by `best` or the last weights."""
        return result

    def configure_optimizers(self) -> OptimizerLRScheduler:
        if self.optimizer_config is None or self.scheduler_config is None:
            raise ValueError("GPTModule needs the settings of an optimizer and a schedule to train")
        scheduler, max_steps = self.scheduler_config, self.trainer.max_steps
        optimizer = build_optimizer(self.model, self.optimizer_config, self.trainer.precision)
        schedule = LambdaLR(optimizer, lambda step: lr_multiplier(step, max_steps, scheduler))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def is_training(trainer: L.Trainer) -> bool:
    """Whether this is a training run. Evaluating a finished model calls the same validation hooks."""
    return trainer.state.fn == "fit"


def model_of(module: L.LightningModule) -> GPT:
    """The GPT that a GPTModule trains."""
    return cast(GPT, module.model)


def data_of(trainer: L.Trainer) -> "Data":
    """The data that a run trains on."""
    return cast("Data", trainer.datamodule)  # type: ignore[attr-defined]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The mean over all positions of -log p(target), for logits (B, T, V) and targets (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
