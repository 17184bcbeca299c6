"""Lightning's Trainer for one run: one epoch of `max_steps` optimizer steps, with all that runs meanwhile."""

import inspect
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, Checkpoint, Timer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from gpt import callbacks as parts
from gpt.checkpoint import FORMAT
from gpt.config import RunConfig
from gpt.data import Data
from gpt.errors import UserError, did_you_mean, one_line, shorten
from gpt.machine import describe_origin
from gpt.run import Run

# Lightning's arguments that a run sets by itself, and what to use in their place
INSTEAD = dict.fromkeys(("default_root_dir", "plugins", "use_distributed_sampler"), "leave it out")
INSTEAD |= {"callbacks": "use callbacks.NAME", "enable_checkpointing": "use callbacks.last=null"}
INSTEAD |= {"logger": "use logger=NAME", "fast_dev_run": "use trainer=debug"}
INSTEAD |= dict.fromkeys(("max_epochs", "limit_train_batches", "overfit_batches"), "use trainer.max_steps")


@dataclass(frozen=True)
class RunOptions:
    """How a run is started and shown. Nothing here changes its result."""

    command: Sequence[str] = ()  # what was typed
    resume_hint: str = "Run the same command to continue"  # what a run that is stopped tells its user
    overrides: Mapping[str, Any] = field(default_factory=dict)  # the settings and choices of groups among it
    callbacks: Sequence[Callback] = ()  # in addition to those of the configuration
    quiet: bool = False  # print nothing: a sweep prints one line for each run


def make_trainer(
    config: RunConfig, run: Run, data: Data, options: RunOptions, origin: Mapping[str, Any]
) -> L.Trainer:
    """The Trainer of a run whose configuration is resolved. `origin` is what run.json says beyond the usual.

    Raises UserError for settings that do not fit this machine.
    """
    sizes, tokenizer = config.model.model_dump(mode="json"), data.tokenizer.state
    metadata = {"format": FORMAT, "model": sizes, "tokenizer": tokenizer}
    metadata |= {"text_sha256": data.sha256, "config": config.to_dict(), **data.metadata}
    typed = {"command": list(options.command), "overrides": dict(options.overrides)}
    progress = parts.ProgressBar() if sys.stdout.isatty() else parts.ProgressLines()
    callbacks = [
        BeginRun(run, config, {**typed, "text_sha256": data.sha256, **origin}),
        *parts.make_all("callbacks", config.callbacks, run.folder),
        parts.StepSeed(config.seed),
        parts.HParams(config.flat(), options.overrides),
        *([] if options.quiet else [progress]),
        *options.callbacks,
        Timer(config.trainer.max_time, verbose=False),
        parts.MaxSteps(),
        parts.GracefulStop(options.resume_hint),
    ]
    trainer = build_trainer(config, run, callbacks, metadata)
    check_machine(config, trainer, in_sweep=options.quiet)
    return trainer


def build_trainer(
    config: RunConfig, run: Run, callbacks: list[Callback], metadata: dict[str, Any]
) -> L.Trainer:
    """Lightning's Trainer. What Lightning counts in batches, our settings count in optimizer steps."""
    settings, more = config.trainer, config.trainer.model_extra or {}
    known = inspect.signature(L.Trainer).parameters
    for name, value in more.items():
        if advice := INSTEAD.get(name) or (did_you_mean(name, known) if name not in known else None):
            raise UserError(f"trainer.{name} = {shorten(value)}: not a setting of a run; {advice}")
    loggers = parts.make_all("logger", config.logger, run.folder)
    interval = min(settings.val_check_interval or settings.max_steps, settings.max_steps)
    # Buffers are constants, which need not be sent from process to process
    ddp = DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True)
    arguments = settings.model_dump(exclude={"compile", "max_time"}) | {  # named as Lightning's are
        "devices": int(settings.devices) if settings.devices.isdigit() else settings.devices,
        "strategy": ddp if settings.strategy == "ddp" else "auto",
        "max_epochs": -1,
        "val_check_interval": interval * settings.accumulate_grad_batches,
        "gradient_clip_val": settings.gradient_clip_val or None,
        "default_root_dir": run.folder,
        "callbacks": callbacks,
        "logger": loggers,
        "plugins": [parts.AtomicCheckpointIO(metadata, loggers, settings.accumulate_grad_batches)],
        "use_distributed_sampler": False,  # our batches know their rank
        "num_sanity_val_steps": 0,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": False,  # there is ours
        "enable_model_summary": False,
    }
    try:
        trainer = L.Trainer(**(arguments | more))
    except (MisconfigurationException, ValueError, TypeError) as error:
        given = more or {"accelerator": settings.accelerator, "devices": settings.devices}
        values, reason = shorten(", ".join(map(str, given.values()))), one_line(error).rstrip(".;")
        advice = "try trainer=cpu trainer.devices=1"
        raise UserError(f"trainer.{', '.join(given)} = {values}: {reason}; {advice}") from None
    # Its table is wanted, although Lightning's other messages are left out
    trainer.profiler._rank_zero_info = rank_zero_only(print)  # type: ignore[attr-defined]
    return trainer


class BeginRun(Callback):
    """Begins the run's folder after the first step: whatever does not fit has shown itself by then."""

    def __init__(self, run: Run, config: RunConfig, origin: Mapping[str, Any]) -> None:
        self.run, self.config, self.origin = run, config, origin

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.run.has_begun:
            if trainer.is_global_zero and not (self.run.folder / "run.json").exists():
                reason = "it was removed or renamed while the run was training; put it back"
                raise UserError(f"run_dir = {self.run.folder}: {reason} and resume the run")
            return
        before, nodes = self.run.config, {}
        for (name, node), logger in zip(self.config.logger.items(), trainer.loggers, strict=True):
            # What a tracker calls this run, so that the same one continues on resume
            called = {key: logger.version for key in ("id", "run_id") if node.get(key, "") is None}
            nodes[name] = node | called
        config = self.config.model_copy(update={"logger": nodes})
        self.run.begin(config, {**describe_origin(trainer), **self.origin})
        for name, logger in zip(nodes, trainer.loggers, strict=True):
            if before is None or name not in before.logger:
                logger.log_hyperparams(self.config.flat())


def check_machine(config: RunConfig, trainer: L.Trainer, in_sweep: bool) -> None:
    """Raises UserError for more processes or memory than there are, or processes that a job would start.

    The memory is that of weights, gradients, one moment of them, and the inputs of the matrix products.
    """
    model, size, tokens = config.model, config.data.batch_size, config.tokens_per_batch
    count, cores, known = trainer.num_devices, os.cpu_count() or 1, hasattr(os, "sysconf")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else math.inf
    is_cpu = isinstance(trainer.accelerator, CPUAccelerator)
    bytes_per_number = 2 if config.trainer.precision == "bf16-mixed" else 4
    needed = 12 * model.parameter_count() + bytes_per_number * 12 * model.n_layer * model.n_embd * tokens
    if is_cpu and needed > memory:
        sizes = f"{model.parameter_count():,} parameters, {tokens:,} tokens a batch"
        reason = f"at least {needed / 2**30:,.0f} GiB of memory, where there are {memory / 2**30:,.0f}"
        raise UserError(f"model, data.batch_size = {sizes}: {reason}; reduce the model or the batch")
    if is_cpu and count > cores:
        raise UserError(f"trainer.devices = {count}: more processes than the {cores} cores here")
    if size % trainer.world_size:
        raise UserError(f"data.batch_size = {size}: not divisible among {trainer.world_size} processes")
    environment = getattr(trainer.strategy, "cluster_environment", None)
    starts_them = environment is not None and not environment.creates_processes_externally  # as Slurm does
    if in_sweep and trainer.world_size > 1 and starts_them:
        raise UserError(f"trainer.devices = {count}: a job of a sweep uses one device; use Slurm for more")
