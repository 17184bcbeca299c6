"""How a run is saved, continued and ended. One that was resumed equals, bit for bit, one never interrupted.

Lightning's ModelCheckpoint is not used: it forgets the best score when the run's folder has moved.
"""

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from lightning.fabric.plugins.io import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping
from lightning.pytorch.loggers import Logger
from pydantic import ConfigDict, Field, validate_call
from pydantic.dataclasses import dataclass

from gpt.checkpoint import SUFFIX, checkpoint_path, read, refusal, write
from gpt.module import is_training

State = dict[str, Any]

PREFIX = "model."  # of the names that Lightning has for the weights: they are attributes of GPTModule.model
NOT_STORED = ("epoch", "pytorch-lightning_version", "loops", "lr_schedulers")  # they follow from the step
ModelCheckpoint.FILE_EXTENSION = SUFFIX  # Lightning's own writes the same files, where somebody adds it
STRICT = ConfigDict(extra="forbid")  # refuse an argument that a callback does not have
WEIGHTS_ALONE = "weights_alone"  # a storage option: leave out what only training needs


class AtomicCheckpointIO(CheckpointIO):
    """Has Lightning write and read checkpoints in the format of `gpt.checkpoint`, whole at any time.

    Each one holds `metadata`, from which `gpt.checkpoint` makes the model again. The loggers of the run write
    first, so that what led to a checkpoint is on disk when it is. A step takes `accumulate` batches.
    """

    def __init__(self, metadata: State, loggers: Sequence[Logger] = (), accumulate: int = 1) -> None:
        self.metadata, self.accumulate = metadata, accumulate
        self.loggers = [logger for logger in loggers if isinstance(logger, RunLogger)]

    def save_checkpoint(self, checkpoint: State, path: str | Path, storage_options: Any = None) -> None:
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in checkpoint["state_dict"].items()}
        content = {"gpt": self.metadata | {"step": checkpoint["global_step"]}, "state_dict": weights}
        content |= {"draft": checkpoint["draft"]} if "draft" in checkpoint else {}
        if storage_options != WEIGHTS_ALONE:
            content |= {key: value for key, value in checkpoint.items() if key not in (*NOT_STORED, *content)}
        for logger in self.loggers:
            logger.write()
        try:
            write(Path(path), content)
        except TypeError as error:  # the state of somebody's callback
            raise refusal(Path(path), f"not written, {error}", "let its state be plain values") from None

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> State:
        """What Lightning continues from, with its counters as they are after that step."""
        content = read(Path(path))
        step = content["global_step"]
        content["state_dict"] = {PREFIX + name: tensor for name, tensor in content["state_dict"].items()}
        begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}  # the one epoch
        loops: State = {"epoch_progress": {"total": begun, "current": begun}}
        loops["epoch_loop.batch_progress"] = counted(step * self.accumulate) | {"is_last_batch": False}
        steps = {"optimizer": {"step": counted(step), "zero_grad": counted(step)}}
        loops["epoch_loop.automatic_optimization.optim_progress"] = steps
        content |= {"pytorch-lightning_version": L.__version__, "loops": {"fit_loop": loops}}
        return content | {"lr_schedulers": []}  # see MaxSteps

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def counted(number: int) -> State:
    """The state of one of Lightning's counters after `number` events, all of them over."""
    counters = dict.fromkeys(("ready", "started", "processed", "completed"), number)
    return {"total": counters, "current": counters}


def save_weights(trainer: L.Trainer, name: str) -> None:
    """Write a checkpoint without what only training needs. All processes take part."""
    path = checkpoint_path(trainer.default_root_dir, name)
    trainer.save_checkpoint(path, storage_options=WEIGHTS_ALONE)


class Stateful(Callback):
    """A callback of whose attributes checkpoints hold those that `kept` names, under its `state_key`."""

    kept: tuple[str, ...]

    def state_dict(self) -> State:
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state_dict: State) -> None:
        for name in state_dict.keys() & set(self.kept):
            setattr(self, name, state_dict[name])


@dataclass(config=STRICT, eq=False)
class BestCheckpoint(Stateful, Checkpoint):
    """Writes checkpoints/best.safetensors after each validation that finds a new lowest `val/loss`.

    `score` is that loss, None before the first validation, and `step` how many steps had been taken by then.
    The `top_k` lowest, of which `ranking` has losses and steps, are also kept as best-STEP.safetensors.
    """

    state_key, kept = "best", ("score", "step", "ranking")
    top_k: Annotated[int, Field(ge=1)] | None = None
    score: float | None = Field(None, init=False)
    step: int = Field(0, init=False)
    ranking: list[Any] = Field(default_factory=list, init=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_training(trainer) or "val/loss" not in trainer.callback_metrics:  # data.val_fraction=0
            return
        # All processes take part in saving, so they have to agree
        score = trainer.strategy.broadcast(trainer.callback_metrics["val/loss"].item())
        if self.score is None or score < self.score:
            self.score, self.step = score, trainer.global_step
            save_weights(trainer, "best")
        if self.top_k is not None:
            newest = [score, trainer.global_step]
            ranking = sorted([*self.ranking, newest])
            self.ranking = ranking[: self.top_k]
            if newest in self.ranking:
                save_weights(trainer, f"best-{trainer.global_step}")
            for _, step in ranking[self.top_k :]:
                path = checkpoint_path(trainer.default_root_dir, f"best-{step}")
                trainer.strategy.remove_checkpoint(path)


@dataclass(config=STRICT, eq=False)
class LastCheckpoint(Stateful, Checkpoint):
    """Writes checkpoints/last.safetensors after each validation: this is where a run continues.

    The weights of one validation in `every` are also kept, as step-STEP.safetensors.
    """

    state_key, kept = "last", ("validations",)
    every: Annotated[int, Field(ge=1)] | None = None
    validations: int = Field(0, init=False)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not is_training(trainer):
            return
        self.validations += 1
        if self.every is not None and self.validations % self.every == 0:
            save_weights(trainer, f"step-{trainer.global_step}")
        trainer.save_checkpoint(checkpoint_path(trainer.default_root_dir, "last"))


class RunLogger(Logger):
    """A logger that writes into the run's folder, and continues where a checkpoint was taken."""

    name = version = ""  # type: ignore[assignment]

    def resume(self, step: int) -> None:
        """Drop what was logged after the first `step` steps. Is called before anything else is logged."""
        raise NotImplementedError

    def write(self) -> None:
        """Put everything that was logged on disk. Is called before each checkpoint is written."""
        self.save()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them, and HParams shows them."""


class EMA(EMAWeightAveraging):
    """Validates, samples and saves an exponential moving average of the weights.

    average <- decay * average + (1 - decay) * weights. A checkpoint also holds the weights that are trained.
    """

    state_key = "ema"

    @validate_call
    def __init__(self, decay: Annotated[float, Field(gt=0, lt=1)]) -> None:
        super().__init__(decay=decay, use_buffers=False)  # the buffers are constants


class StepSeed(Callback):
    """Seeds torch before each batch, so that dropout depends on (seed, number of the batch, rank) alone.

    step            ... 98        99        100       101 ...
    uninterrupted       seed(98)  seed(99)  seed(100) seed(101)
    killed, resumed     seed(98)  seed(99) |seed(99)  seed(100) ...     by a checkpoint of step 99
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        # The step that loggers see. Lightning saves it before it increases it, so a resumed run would lag
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        accumulate = trainer.accumulate_grad_batches
        # batch_idx itself starts again from 0 where a finished run continues with more steps
        number = trainer.global_step * accumulate + trainer.fit_loop.batch_idx % accumulate
        seed = (self.seed * 1_000_003 + number) * 1_009 + trainer.global_rank
        # torch.manual_seed visits every kind of device: 100 times slower
        torch.default_generator.manual_seed(seed)
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(seed)


class MaxSteps(Callback):
    """What depends on `max_steps`, which may have been raised since a checkpoint was written.

    A resumed run has the rates that its step has in a run of the new length. And the last step ends in a
    validation, even if `val_check_interval` does not divide `max_steps`. Setting `trainer.should_stop` would
    do so too, but also make Lightning log the previous values once more.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        schedule: Any = trainer.lr_scheduler_configs[0].scheduler  # which sets the rates when it begins
        schedule.last_epoch = trainer.global_step - 1
        schedule._initial_step()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step >= trainer.max_steps:  # Lightning validates after batches that this divides:
            trainer.val_check_batch = trainer.fit_loop.batch_idx + 1


class EarlyStopping(LightningEarlyStopping):
    """Ends a run after `patience` validations in a row without a `val/loss` lower by over `min_delta` nats.

    A run that was killed when it had met its patience, but had no result yet, stops at once when resumed.
    """

    state_key = "early_stopping"

    @validate_call
    def __init__(
        self, patience: Annotated[int, Field(ge=1)], min_delta: Annotated[float, Field(ge=0)] | None = None
    ) -> None:
        super().__init__("val/loss", min_delta or 0.0, patience, check_on_train_epoch_end=False)

    @property
    def is_met(self) -> bool:
        """Whether the run no longer improves."""
        return self.wait_count >= self.patience

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.should_stop or self.is_met


class GracefulStop(Callback):
    """Lets SIGINT, SIGTERM and SIGUSR1 finish the step and save, then ends with exit code 128 + the signal.

    If the step is one that logs or validates, that still happens. A second Ctrl-C ends the process at once.
    `advice` tells how to continue the run. This callback comes last: it prints when a progress bar has ended.
    """

    def __init__(self, advice: str) -> None:
        self.advice, self.signal, self.stopping = advice, 0, False
        self.previous_handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.first_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # no other may set signal handlers
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
                if number := getattr(signal, name, None):  # Windows lacks SIGUSR1
                    self.previous_handlers[number] = signal.signal(number, self.note)

    def note(self, number: int, frame: Any) -> None:
        """Remember the signal until the step ends. From now on, Ctrl-C interrupts at once."""
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        is_within_step = trainer.fit_loop.batch_idx % trainer.accumulate_grad_batches > 0
        if not is_within_step and trainer.global_step > self.first_step:  # before, nothing may be written
            self.obey(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.obey(trainer, pl_module)  # a signal that came in the last validation

    def obey(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save and raise SystemExit, if a signal has come to any of the processes."""
        number = self.signal
        if trainer.world_size > 1:  # a signal to any process stops them all
            own = torch.tensor(number, device=pl_module.device)
            number = int(trainer.strategy.reduce(own, reduce_op="max"))
        if number:
            trainer.save_checkpoint(checkpoint_path(trainer.default_root_dir, "last"))
            self.stopping = True
            # Lightning kills its first process if another one that it started ends with anything but 0
            raise SystemExit(128 + number if trainer.is_global_zero else 0)

    def on_exception(self, trainer: L.Trainer, *args: Any) -> None:
        self.signal = 0  # it ends here
        self.teardown()
        if self.stopping and trainer.is_global_zero:
            done = f"stopped after {trainer.global_step:,} steps; everything is saved."
            print(f"{done}\n{self.advice}", flush=True)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        """Give signals back to whoever handled them before this run, and one that came too late for it."""
        while self.previous_handlers:
            signal.signal(*self.previous_handlers.popitem())
        if self.signal:
            signal.raise_signal(self.signal)
