"""Lightning's Trainer for one run: one epoch of `max_steps` optimizer steps, with what runs beside training."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, Checkpoint

from gpt.callbacks import make_callbacks, make_loggers
from gpt.callbacks.checkpoints import StoreMetadata
from gpt.callbacks.progress import ProgressBar, ProgressLines
from gpt.callbacks.step_seed import ResumeAtStep, StepSeed
from gpt.callbacks.stopping import GracefulStop, ValidateAtEnd
from gpt.callbacks.tensorboard import HParams
from gpt.checkpoint_io import AtomicCheckpointIO
from gpt.config import RunConfig
from gpt.errors import UserError, one_line
from gpt.machine import device_type, free_space, memory_size
from gpt.runs.folder import Run
from gpt.runs.strategies import NEED_WHOLE_MODEL, distribution_of


@dataclass(frozen=True)
class RunOptions:
    """How a run is started and shown. Nothing here changes its result."""

    command: Sequence[str] = ()  # what was typed
    resume_hint: str = "Run the same command to continue"  # what a run that is stopped tells its user
    overrides: Mapping[str, Any] = field(default_factory=dict)  # the settings and choices of groups among it
    callbacks: Sequence[Callback] = ()  # beside those of the configuration
    quiet: bool = False  # print nothing: a sweep prints one line for each run


def make_trainer(config: RunConfig, run: Run, metadata: dict[str, Any], options: RunOptions) -> L.Trainer:
    """The Trainer of a run whose configuration is resolved. Raises UserError for settings that do not fit this machine.

    `metadata` is what its checkpoints say about themselves.
    """
    check_resources(config, run)
    distribution = distribution_of(config.trainer.strategy)
    distribution.check(config)
    own = make_callbacks(config.callbacks)
    if distribution.shares_weights:
        own = [callback for callback in own if callback.state_key not in NEED_WHOLE_MODEL]
    own += [
        StepSeed(config.seed),
        ResumeAtStep(),
        HParams(config.flat(), options.overrides),
        StoreMetadata(metadata),
        GracefulStop(options.resume_hint),
    ]
    if not options.quiet:
        own.append(ProgressBar() if sys.stdout.isatty() else ProgressLines())
    own = [BeginFolder(run), *own, *options.callbacks, ValidateAtEnd()]
    trainer = build_trainer(config, run, own)
    check_processes(config, trainer, in_sweep=options.quiet)
    return trainer


def build_trainer(config: RunConfig, run: Run, callbacks: list[Callback]) -> L.Trainer:
    """Lightning's Trainer. Everything that Lightning counts in batches is counted in optimizer steps by our settings."""
    settings = config.trainer
    batches = settings.max_steps * settings.accumulate_grad_batches
    assert settings.val_check_interval is not None  # RunConfig.resolve has decided it
    try:
        return L.Trainer(
            accelerator=settings.accelerator,
            devices=int(settings.devices) if settings.devices.isdigit() else settings.devices,
            num_nodes=settings.num_nodes,
            strategy=distribution_of(settings.strategy).make(),
            precision=settings.precision,  # type: ignore[arg-type]
            max_steps=settings.max_steps,
            max_epochs=-1,
            max_time=settings.max_time,
            val_check_interval=min(settings.val_check_interval * settings.accumulate_grad_batches, batches),
            log_every_n_steps=settings.log_every_n_steps,
            gradient_clip_val=settings.gradient_clip_val or None,
            accumulate_grad_batches=settings.accumulate_grad_batches,
            deterministic=settings.deterministic,
            detect_anomaly=settings.detect_anomaly,
            profiler=settings.profiler,
            default_root_dir=run.folder,
            callbacks=callbacks,
            logger=make_loggers(config.logger, run.folder),
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,  # our batches know their rank
            num_sanity_val_steps=0,
            enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
            enable_progress_bar=any(
                isinstance(callback, ProgressBar) for callback in callbacks
            ),  # none but ours
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        reason = one_line(error).rstrip(".;")
        given = f"trainer.accelerator, devices = {settings.accelerator}, {settings.devices}"
        raise UserError(f"{given}: {reason}; try trainer=cpu trainer.devices=1") from None


class BeginFolder(Callback):
    """Begins the run's folder after the first step, and so before anything is saved there."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_batch_end(self, *args: Any) -> None:
        self.run.begin()


def check_processes(config: RunConfig, trainer: L.Trainer, in_sweep: bool) -> None:
    """Raises UserError for more processes than cores, a batch that they cannot share, or a job that would start processes."""
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise UserError(
            f"trainer.devices = {trainer.num_devices}: more processes than the {cores} cores here; set fewer"
        )
    if (size := config.data.batch_size) % trainer.world_size:
        raise UserError(
            f"data.batch_size = {size}: not divisible among {trainer.world_size} processes; set a multiple"
        )
    if in_sweep and starts_processes(trainer):
        raise UserError(
            f"trainer.devices = {trainer.num_devices}: a job of a sweep uses one device; use Slurm for more"
        )


def starts_processes(trainer: L.Trainer) -> bool:
    """Whether Lightning starts the other processes of this run. torchrun and Slurm start them by themselves."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return trainer.world_size > 1 and environment is not None and not environment.creates_processes_externally


def check_resources(config: RunConfig, run: Run) -> None:
    """Raises UserError if a run on CPUs cannot fit into memory, or the checkpoints of a new one onto the disk.

    What is counted is the least that it takes: weights, gradients, one moment of them, and the inputs of the blocks'
    matrix products.
    """
    parameters, tokens = parameter_count(config.model), config.tokens_per_batch
    bytes_per_number = 2 if config.trainer.precision == "bf16-mixed" else 4
    needed = 12 * parameters + bytes_per_number * 12 * config.model.n_layer * config.model.n_embd * tokens
    if needed > (available := memory_size()) and device_type(config.trainer.accelerator) == "cpu":
        raise UserError(
            f"model, data.batch_size = {parameters:,} parameters, {tokens:,} tokens a batch: they need at least "
            f"{needed / 2**30:,.0f} GiB of memory, and this machine has {available / 2**30:,.0f}; reduce the model or the batch"
        )
    free, needed = (
        free_space(run.folder),
        3 * 8 * parameters,
    )  # best, last, and the next one while it is written
    if needed > free and not (run.folder / "checkpoints").exists():
        raise UserError(
            f"run_dir = {run.folder}: {free:,} bytes free, and checkpoints take {needed:,}; make room, or choose another folder"
        )
