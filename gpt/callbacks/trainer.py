"""Lightning's Trainer for one run: one epoch of `max_steps` optimizer steps, with what runs during training."""

import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.strategies import DDPStrategy

from gpt.callbacks import make_all
from gpt.callbacks.checkpoints import AtomicCheckpointIO, StoreMetadata
from gpt.callbacks.loggers import HParams
from gpt.callbacks.progress import ProgressBar, ProgressLines
from gpt.callbacks.step_seed import ResumeAtStep, StepSeed
from gpt.callbacks.stopping import GracefulStop, ValidateAtEnd
from gpt.checkpoint import FORMAT
from gpt.config import RunConfig
from gpt.data import Data
from gpt.errors import UserError, did_you_mean, one_line, shorten
from gpt.machine import describe_origin, device_type, free_space, memory_size
from gpt.run import Run

# Arguments of Lightning's Trainer that a run sets itself, and what to use in their place
OWN_ARGUMENTS = dict.fromkeys(("default_root_dir", "plugins", "use_distributed_sampler"), "leave it out")
OWN_ARGUMENTS |= {
    "callbacks": "use callbacks.NAME",
    "logger": "use logger=NAME",
    "fast_dev_run": "use trainer=debug",
}
OWN_ARGUMENTS |= {"enable_checkpointing": "use callbacks.best=null callbacks.last=null"}
OWN_ARGUMENTS |= dict.fromkeys(("max_epochs", "min_epochs"), "use trainer.max_steps")


@dataclass(frozen=True)
class RunOptions:
    """How a run is started and shown. Nothing here changes its result."""

    command: Sequence[str] = ()  # what was typed
    resume_hint: str = "Run the same command to continue"  # what a run that is stopped tells its user
    overrides: Mapping[str, Any] = field(default_factory=dict)  # the settings and choices of groups among it
    callbacks: Sequence[Callback] = ()  # in addition to those of the configuration
    quiet: bool = False  # print nothing: a sweep prints one line for each run


def make_trainer(
    config: RunConfig, run: Run, data: Data, options: RunOptions, more_origin: Mapping[str, Any]
) -> L.Trainer:
    """The Trainer of a run whose configuration is resolved. Raises UserError for settings that do not fit
    this machine.
    """
    check_resources(config, run)
    metadata = {
        "format": FORMAT,
        "model": config.model.model_dump(mode="json"),
        "tokenizer": data.tokenizer.state,
        "text_sha256": data.sha256,
        "config": config.to_dict(),
        **data.metadata,
    }
    begin = BeginRun(run, config, data, options, more_origin)
    own = [
        begin,
        *make_all("callbacks", config.callbacks, run.folder),
        StepSeed(config.seed),
        ResumeAtStep(),
        HParams(config.flat(), options.overrides),
        StoreMetadata(metadata),
        GracefulStop(options.resume_hint),
    ]
    if not options.quiet:
        own.append(ProgressBar() if sys.stdout.isatty() else ProgressLines())
    own += [*options.callbacks, ValidateAtEnd()]
    trainer = build_trainer(config, run, own)
    check_processes(config, trainer, in_sweep=options.quiet)
    return trainer


def build_trainer(config: RunConfig, run: Run, callbacks: list[Callback]) -> L.Trainer:
    """Lightning's Trainer. Everything that Lightning counts in batches is counted in optimizer steps by our
    settings.
    """
    settings, more = config.trainer, config.trainer.model_extra or {}
    known = inspect.signature(L.Trainer).parameters
    for name, value in more.items():
        advice = OWN_ARGUMENTS.get(name) or (
            None if name in known else did_you_mean(f"trainer.{name}", known)
        )
        if advice is not None:
            raise UserError(f"trainer.{name} = {shorten(value)}: not a setting of a run; {advice}")
    batches = settings.max_steps * settings.accumulate_grad_batches
    interval = settings.val_check_interval or settings.max_steps  # `resolve` has decided it
    # The buffers of a model are constants, which need not be sent from process to process
    ddp = (
        DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True)
        if settings.strategy == "ddp"
        else "auto"
    )
    arguments = {
        "accelerator": settings.accelerator,
        "devices": int(settings.devices) if settings.devices.isdigit() else settings.devices,
        "num_nodes": settings.num_nodes,
        "strategy": ddp,
        "precision": settings.precision,
        "max_steps": settings.max_steps,
        "max_epochs": -1,
        "max_time": settings.max_time,
        "val_check_interval": min(interval * settings.accumulate_grad_batches, batches),
        "log_every_n_steps": settings.log_every_n_steps,
        "gradient_clip_val": settings.gradient_clip_val or None,
        "accumulate_grad_batches": settings.accumulate_grad_batches,
        "deterministic": settings.deterministic,
        "detect_anomaly": settings.detect_anomaly,
        "profiler": settings.profiler,
        "default_root_dir": run.folder,
        "callbacks": callbacks,
        "logger": make_all("logger", config.logger, run.folder),
        "plugins": [AtomicCheckpointIO()],
        "use_distributed_sampler": False,  # our batches know their rank
        "num_sanity_val_steps": 0,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_model_summary": False,
    }
    try:
        return L.Trainer(**(arguments | more))
    except (MisconfigurationException, ValueError, TypeError) as error:
        given = f"trainer.accelerator, devices = {settings.accelerator}, {settings.devices}"
        given = ", ".join(["trainer", *more]) + " = (given)" if more else given
        raise UserError(
            f"{given}: {one_line(error).rstrip('.;')}; try trainer=cpu trainer.devices=1"
        ) from None


class BeginRun(Callback):
    """Begins the run's folder after the first step: whatever does not fit has shown itself by then, and
    nothing is there to be undone.
    """

    def __init__(
        self, run: Run, config: RunConfig, data: Data, options: RunOptions, more: Mapping[str, Any]
    ) -> None:
        self.run, self.config, self.data, self.options, self.more = run, config, data, options, more

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.run.has_begun:
            return
        is_new = not self.run.origin
        origin = describe_origin(trainer, self.options.command, self.options.overrides, self.data.sha256)
        self.run.begin(self.with_identities(trainer), origin | self.more)
        for logger in trainer.loggers if is_new else ():
            logger.log_hyperparams(self.config.flat())

    def with_identities(self, trainer: L.Trainer) -> RunConfig:
        """The configuration with what trackers call this run, so that the same one continues when it is
        resumed.
        """
        nodes = {name: dict(node) for name, node in self.config.logger.items()}
        for node, logger in zip(nodes.values(), trainer.loggers, strict=True):
            for key in ("id", "run_id"):
                if key in node and node[key] is None and trainer.is_global_zero:
                    node[key] = logger.version
        return self.config.model_copy(update={"logger": nodes})


def check_processes(config: RunConfig, trainer: L.Trainer, in_sweep: bool) -> None:
    """Raises UserError for more processes than cores, a batch that they cannot share, or a job that starts
    processes.
    """
    cores, environment = os.cpu_count() or 1, getattr(trainer.strategy, "cluster_environment", None)
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise UserError(
            f"trainer.devices = {trainer.num_devices}: more processes than the {cores} cores here; set fewer"
        )
    if (size := config.data.batch_size) % trainer.world_size:
        raise UserError(
            f"data.batch_size = {size}: not divisible among {trainer.world_size} processes; set a multiple"
        )
    # as torchrun and Slurm do
    starts_them = environment is not None and not environment.creates_processes_externally
    if in_sweep and trainer.world_size > 1 and starts_them:
        raise UserError(
            f"trainer.devices = {trainer.num_devices}: a job of a sweep uses one device; use Slurm for more"
        )


def check_resources(config: RunConfig, run: Run) -> None:
    """Raises UserError if a run on CPUs cannot fit into memory, or the checkpoints of a new one onto the
    disk.

    What is counted is the least that it takes: weights, gradients, one moment of them, and the inputs of the
    blocks' matrix products.
    """
    parameters, tokens = config.model.parameter_count(), config.tokens_per_batch
    bytes_per_number = 2 if config.trainer.precision == "bf16-mixed" else 4
    needed = 12 * parameters + bytes_per_number * 12 * config.model.n_layer * config.model.n_embd * tokens
    if needed > (available := memory_size()) and device_type(config.trainer.accelerator) == "cpu":
        sizes = f"{parameters:,} parameters, {tokens:,} tokens a batch"
        memory = f"they need at least {needed / 2**30:,.0f} GiB of memory, and this machine has {available / 2**30:,.0f}"
        raise UserError(f"model, data.batch_size = {sizes}: {memory}; reduce the model or the batch")
    # best, last, and the next one while it is written
    free, needed = free_space(run.folder), 3 * 8 * parameters
    if needed > free and run.last is None:
        room = f"{free:,} bytes free, and checkpoints take {needed:,}"
        raise UserError(f"run_dir = {run.folder}: {room}; make room, or choose another folder")
