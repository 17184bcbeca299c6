"""How a run ends: by a signal, after its last step, or because it no longer improves."""

import math
import signal
import threading
from types import FrameType
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from pydantic import Field, validate_call

from gpt.callbacks.checkpoints import LastCheckpoint, checkpoint_path


class GracefulStop(Callback):
    """Lets SIGINT, SIGTERM and SIGUSR1 finish the step and save, then ends with exit code 128 + the signal.

    A second Ctrl-C ends the process at once. The checkpoint is always one from the end of a step. If that
    step is one that logs or validates, that still happens. `advice` tells how to continue the run.
    """

    def __init__(self, advice: str) -> None:
        self.advice = advice
        self.signal: int | None = None
        self.stopping = False
        self.step = 0
        self.previous_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # no other may set signal handlers
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
                if number := getattr(signal, name, None):  # Windows lacks SIGUSR1
                    self.previous_handlers[number] = signal.signal(number, self.note)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal until the step ends. From now on, Ctrl-C interrupts at once."""
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_step, self.step = trainer.global_step != self.step, trainer.global_step
        if not is_step:  # gradients are still being accumulated
            return
        number = self.signal
        if trainer.world_size > 1:  # a signal to any process stops them all
            own = torch.tensor(number or 0, device=pl_module.device)
            number = int(trainer.strategy.reduce(own, reduce_op="max"))
        if number:  # otherwise, leave self.signal alone: a signal may have arrived since it was read
            self.signal, self.stopping = number, True
            is_last = trainer.global_step >= trainer.max_steps
            validates = is_last or (batch_idx + 1) % (trainer.val_check_batch or math.inf) == 0
            saves = any(isinstance(callback, LastCheckpoint) for callback in trainer.checkpoint_callbacks)
            if not (validates and saves):  # or else the validation before the next batch ends in a checkpoint
                trainer.save_checkpoint(checkpoint_path(trainer, "last"))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if not self.stopping:
            return
        done = f"stopped after {trainer.global_step:,} steps; everything is saved."
        pl_module.print(f"{done}\n{self.advice}", flush=True)
        # Lightning kills its first process if another one that it started ends with anything but 0
        raise SystemExit(128 + (self.signal or 0) if trainer.is_global_zero else 0)

    def on_exception(self, *args: Any) -> None:
        self.restore_handlers()

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Give signals back to whoever handled them before this run."""
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
        self.previous_handlers = {}


class ValidateAtEnd(Callback):
    """Makes the last step end in a validation, even if `val_check_interval` does not divide `max_steps`.

    Setting `trainer.should_stop` would do so too, but also make Lightning log the previous values once more.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= trainer.max_steps:
            # Lightning validates after batches that this number divides
            trainer.val_check_batch = batch_idx + 1


class EarlyStopping(LightningEarlyStopping):
    """Ends a run after `patience` validations in a row without a new lowest `val/loss`.

    A run that was killed when it had met its patience, but had no result yet, stops at once when it is
    resumed.
    """

    state_key = "early_stopping"

    @validate_call
    def __init__(self, patience: Annotated[int, Field(ge=1)]) -> None:
        super().__init__("val/loss", patience=patience, check_on_train_epoch_end=False)

    @property
    def is_met(self) -> bool:
        """Whether the run no longer improves."""
        return self.wait_count >= self.patience

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.is_met
