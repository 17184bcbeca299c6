"""What makes a resumed run equal to one that was never interrupted: its random numbers and its rates."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback


class StepSeed(Callback):
    """Seeds torch before each batch, so that dropout depends on (seed, number of the batch, rank) alone.

    step            ... 98        99        100       101 ...
    uninterrupted       seed(98)  seed(99)  seed(100) seed(101)
    killed, resumed     seed(98)  seed(99) |seed(99)  seed(100) ...     by a checkpoint of step 99
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # The step that loggers see. Lightning saves it before it increases it, so a resumed run would lag
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        accumulate = trainer.accumulate_grad_batches
        # batch_idx itself starts again from 0 where a finished run continues with more steps
        number = trainer.global_step * accumulate + batch_idx % accumulate
        seed = (self.seed * 1_000_003 + number) * 1_009 + trainer.global_rank
        # torch.manual_seed visits every kind of device: 100 times slower
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)


class ResumeAtStep(Callback):
    """Makes a resumed run begin at the step of its checkpoint, with the rates that its configuration has
    there.

    The learning rate is a function of the step and of `max_steps`, which may have been raised since. Of what
    Lightning restores of the optimizer, only its moments stay.
    """

    def __init__(self) -> None:
        self.configured: list[dict[str, Any]] = []  # for each parameter group

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Give Lightning its counters as they are after that step, and no schedule."""
        step = checkpoint["global_step"]
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}  # the one epoch
        steps = {"optimizer": dict.fromkeys(("step", "zero_grad"), counted(step))}
        batches = counted(step * trainer.accumulate_grad_batches)
        progress = {
            "epoch_progress": {"total": begun, "current": begun},
            "epoch_loop.batch_progress": batches | {"is_last_batch": False},
            "epoch_loop.automatic_optimization.optim_progress": steps,
        }
        checkpoint |= {"loops": {"fit_loop": progress}, "lr_schedulers": []}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note the configured values of each parameter group, which Lightning restores after this hook."""
        groups = trainer.optimizers[0].param_groups
        self.configured = [
            {key: value for key, value in group.items() if key != "params"} for group in groups
        ]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        schedule: Any = trainer.lr_scheduler_configs[0].scheduler  # a LambdaLR
        schedule.last_epoch, schedule._step_count = trainer.global_step, trainer.global_step + 1
        groups = zip(trainer.optimizers[0].param_groups, self.configured, schedule.lr_lambdas, strict=True)
        for group, configured, multiplier in groups:
            group.update(configured)
            group["lr"] = configured["initial_lr"] * multiplier(trainer.global_step)


def counted(number: int) -> dict[str, Any]:
    """The state of one of Lightning's counters after `number` events, all of them over."""
    counters = dict.fromkeys(("ready", "started", "processed", "completed"), number)
    return {"total": counters, "current": counters}
