"""What makes a resumed run equal to one that was never interrupted: its random numbers and its learning
rates.
"""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from gpt.data import Batch


class StepSeed(Callback):
    """Seeds torch before each batch from (seed, number of the batch, rank), so that dropout does not depend
    on interruptions.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        # The step that loggers see. Lightning increases it after it has saved it, so a resumed run would be
        # one behind
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        accumulate = trainer.accumulate_grad_batches
        # batch_idx itself starts again from 0 where a finished run goes on with more steps
        number = trainer.global_step * accumulate + batch_idx % accumulate
        seed = (self.seed * 1_000_003 + number) * 1_009 + trainer.global_rank
        # torch.manual_seed visits every kind of device: 100 times slower
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)


class ResumeAtStep(Callback):
    """Makes a resumed run begin at the step of its checkpoint, with the optimizer settings and schedule of
    its configuration.

    The learning rate is a function of the step and of `max_steps`, which may have been raised since the
    checkpoint was written. Of what Lightning restores of the optimizer, only its moments stay.
    """

    def __init__(self) -> None:
        self.configured: list[dict[str, Any]] = []  # for each parameter group

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Give Lightning its counters as they are after that step, rather than what a file may hold, and no
        schedule.
        """
        step = checkpoint["global_step"]
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}  # the one epoch
        progress = {
            "epoch_progress": {"total": begun, "current": begun},
            "epoch_loop.batch_progress": counted(step * trainer.accumulate_grad_batches)
            | {"is_last_batch": False},
            "epoch_loop.automatic_optimization.optim_progress": {
                "optimizer": dict.fromkeys(("step", "zero_grad"), counted(step))
            },
        }
        checkpoint |= {"loops": {"fit_loop": progress}, "lr_schedulers": []}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the configured values of each parameter group. Lightning restores the optimizer after this
        hook.
        """
        (optimizer,) = trainer.optimizers
        self.configured = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        (config,) = trainer.lr_scheduler_configs
        schedule: Any = config.scheduler  # a LambdaLR
        schedule.last_epoch, schedule._step_count = trainer.global_step, trainer.global_step + 1
        for group, configured, multiplier in zip(
            optimizer.param_groups, self.configured, schedule.lr_lambdas, strict=True
        ):
            group.update(configured)
            group["lr"] = configured["initial_lr"] * multiplier(trainer.global_step)


def counted(number: int) -> dict[str, Any]:
    """The state of one of Lightning's counters after `number` events, all of them over."""
    counters = dict.fromkeys(("ready", "started", "processed", "completed"), number)
    return {"total": counters, "current": counters}
