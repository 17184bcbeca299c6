"""The story of a run: configuration, text, model, training, result.

`train` tells it in order, and what follows are its steps. A run with a task fine-tunes, and one without
pre-trains: `pretraining_parts` and `gpt.finetune.module` are all in which the two differ.
"""

import contextlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, Checkpoint, Timer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from gpt import callbacks as parts
from gpt.checkpoint import FORMAT, checkpoint_path, checksum, load, read
from gpt.config import RunConfig
from gpt.data import Data, TextData
from gpt.errors import UserError, did_you_mean, one_line, shorten
from gpt.finetune.module import TaskData, finetuning_parts
from gpt.finetune.predict import naive_bayes_accuracy
from gpt.machine import describe_machine, describe_origin, keep_freed_memory, silence_lightning
from gpt.model import GPT
from gpt.module import Diverged, GPTModule
from gpt.result import Result
from gpt.run import Run, check_resumable, resolve
from gpt.tokenizer import Tokenizer, restore

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


def train(config: RunConfig, folder: Path, options: RunOptions | None = None) -> Result:
    """Train in `folder` as `config` says, or continue what the folder has of this run, and return its result.

    Raises UserError, and leaves everything as it was, if the run cannot be done.
    """
    options = options or RunOptions()
    silence_lightning()
    keep_freed_memory()
    with Run(folder) as run:
        stored = run.config
        content = read(run.last) if run.last else None
        source = tokenizer = None
        if config.init and not (content and stored and config.model == stored.model):
            config, source, tokenizer = starting_weights(config, run, options.overrides)
        # What a text does not determine is kept: another version of a library might find other pieces
        if content and (config.init or content["gpt"]["tokenizer"].get("kind") not in ("char", "byte")):
            source, tokenizer = None, restore(content["gpt"]["tokenizer"])
        parts_of_kind = pretraining_parts if config.task is None else finetuning_parts
        data, make_module = parts_of_kind(config, source, tokenizer)
        config, reasons = resolve(config, stored, data)
        if stored:
            check_resumable(run, config, stored, data, content)
        if (result := run.result) and (result.step >= config.trainer.max_steps or result.stopped_early):
            return result
        with refusals_before_first_step(run):
            origin = {"init_sha256": checksum(source.state_dict())} if source else {}
            trainer = make_trainer(config, run, data, options, origin)
            L.seed_everything(config.seed, verbose=False)  # of the weights that do not come from others
            module = make_module(config)
            resume_loggers(trainer, run, content)
            if trainer.is_global_zero and not options.quiet:
                parameters = sum(parameter.numel() for parameter in module.parameters())
                lines = [f"{parameters:,} parameters, {data.description}", "; ".join(reasons)]
                print(*filter(None, lines), sep="\n", flush=True)
            del content, source, make_module  # their tensors would take memory while the run trains
            fit(trainer, module, data, run)
        result, sample = collect_result(trainer, module)
        best = checkpoint_path(folder, "best")
        result = module.complete(result, data, best if best.exists() else None)
        if not run.has_begun:  # all steps had been taken before, and only the result was missing
            run.begin(config, origin)
        run.finish(result, sample)
        if isinstance(data, TaskData):  # whatever becomes of the baseline, the result stands
            found = {"naive_bayes_accuracy": naive_bayes_accuracy(data.task)}
            run.finish(result := result.model_copy(update=found), sample)
    return result


def pretraining_parts(
    config: RunConfig, source: GPT | None, tokenizer: Tokenizer | None
) -> tuple[TextData, Callable[[RunConfig], GPTModule]]:
    """The data of a run that pre-trains, and what makes its module once the configuration is resolved.

    The module has the weights of `source` if there is one, and draws them otherwise. Without a `tokenizer`,
    the one that the configuration asks for is made. Raises UserError as `TextData` does.
    """
    data = TextData(config.data, config.model.context_length, config.seed, tokenizer)
    steps = len(data.train_ids) / config.tokens_per_batch / config.trainer.accumulate_grad_batches
    data.description += f", an epoch of {max(1, round(steps)):,} steps"

    def make_module(resolved: RunConfig) -> GPTModule:
        model = GPT(resolved.model)
        if source is not None:
            weights = model.state_dict()
            for name, tensor in source.state_dict().items():
                weights[name][: len(tensor)] = tensor  # of a larger vocabulary, new rows stay random
        if resolved.trainer.compile:
            model.compile()  # in place, so that the names in checkpoints stay as they are
        return GPTModule(model, resolved.optimizer, resolved.scheduler, data.tokenizer.lengths)

    return data, make_module


def load_weights(place: str) -> tuple[GPT, Tokenizer]:
    """The language model that `init=place` names, and its tokenizer. Raises UserError about `init`."""
    try:
        if (Path(place) / "config.json").is_file():
            from gpt.interop.huggingface import from_hf, tokenizer_from_hf  # they need an extra

            tokenizer = tokenizer_from_hf(Path(place))
            model = from_hf(place, len(tokenizer))
        else:
            model, tokenizer, _ = load(place)
    except UserError as error:
        reason = str(error).partition(": ")[2] or str(error)
        raise UserError(f"init = {shorten(place, 200)}: {reason}") from None
    if model.config.vocab_size != len(tokenizer):
        sizes = f"{model.config.vocab_size:,} embeddings, and a tokenizer of {len(tokenizer):,} tokens"
        raise UserError(f"init = {shorten(place, 200)}: {sizes}; use a model whose sizes agree")
    return model, tokenizer


def starting_weights(config: RunConfig, run: Run, typed: Collection[str]) -> tuple[RunConfig, GPT, Tokenizer]:
    """The configuration with the model and the tokenizer of the weights that its `init` names, and these two.

    Raises UserError if a setting that was typed, or is not the default, contradicts the weights, and if they
    are not those that the run began with.
    """
    source, tokenizer = load_weights(str(config.init))
    if run.last is None and run.origin.get("init_sha256") not in (None, checksum(source.state_dict())):
        reason = f"no longer the weights that the run in {run.folder} began with"
        raise UserError(f"init = {shorten(config.init)}: {reason}; restore them, or choose another folder")
    if (stored := run.config) and config.model == stored.model:
        return config, source, tokenizer
    # No weight depends on these: rotary positions have a place for any context
    free = ["vocab_size", "dropout"] + ["context_length"] * (source.config.positions == "rotary")
    default, kept = RunConfig(), {"vocab_size": config.model.vocab_size}
    for group, theirs in (("model", dict(source.config)), ("data", {"tokenizer": tokenizer.kind})):
        for name, value in theirs.items():
            given, usual = (getattr(getattr(of, group), name) for of in (config, default))
            if f"{group}.{name}" not in typed and given == usual:
                continue
            if name in free:
                kept[name] = given
            elif given != value:
                reason = f"the weights of init={config.init} have {value}; leave it out"
                raise UserError(f"{group}.{name} = {shorten(given)}: {reason}")
    data = config.data.model_copy(update={"tokenizer": tokenizer.kind})
    model = source.config.model_copy(update=kept)
    return config.model_copy(update={"model": model, "data": data}), source, tokenizer


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


def resume_loggers(trainer: L.Trainer, run: Run, content: Mapping[str, Any] | None) -> None:
    """Let the loggers continue where the checkpoint was: what was logged after it will be logged again.

    Notes on stderr each thing by which this machine may change the last digits of the run.
    """
    began = run.origin.get("machine", {}) if content is not None and trainer.is_global_zero else {}
    for what, now in describe_machine(trainer).items():
        if what in began and began[what] != now:
            change = f"{what} {now} where the run began with {shorten(began[what])}"
            print(f"note: {change}: its last digits may differ", file=sys.stderr)
    for logger in trainer.loggers:
        if isinstance(logger, parts.RunLogger):
            logger.resume(content["global_step"] if content is not None else 0)


def fit(trainer: L.Trainer, module: GPTModule, data: Data, run: Run) -> None:
    """Train to the end. Raises UserError that names the last good checkpoint if the run diverges.

    Also raises UserError if another process of the run has ended.
    """
    try:
        trainer.fit(module, datamodule=data, ckpt_path=run.last, weights_only=True)
    except Diverged as error:
        where = f"; its last good checkpoint is {run.last}" if run.last else ""
        raise UserError(f"{error}{where}") from None
    except RuntimeError as error:  # of Gloo, or of NCCL
        if "gloo" in str(error) or isinstance(error, torch.distributed.DistBackendError):
            reason = "another one has ended; repeat the command to continue from the last checkpoint"
            raise UserError(f"processes = {trainer.world_size}: {reason}") from None
        raise
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning makes an exit code of 1
            raise KeyboardInterrupt from None
        raise
    finally:
        if wandb := sys.modules.get("wandb"):  # or Lightning gives its run to the next one of this process
            wandb.finish()
    if "val/loss" not in trainer.callback_metrics:  # all steps had been taken, only the result was missing
        trainer.loggers = []  # they have logged it
        trainer.validate(module, datamodule=data, verbose=False)


def collect_result(trainer: L.Trainer, module: GPTModule) -> tuple[Result, str | None]:
    """The numbers of a run that has ended, and the last text that it wrote (None if it was not asked to)."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    found: dict[type, Any] = {kind: callback for callback in callbacks for kind in type(callback).__mro__}
    best, timed = found.get(parts.BestCheckpoint), found.get(parts.Throughput)
    samples, stopping = found.get(parts.Samples), found.get(parts.EarlyStopping)
    speed = round(timed.characters / timed.seconds, 1) if timed and timed.seconds else None
    result = Result(
        best_val_loss=best.score if best else None,
        best_step=best.step if best and best.score is not None else None,
        final_val_loss=float(trainer.callback_metrics.get("val/loss", math.nan)),  # with data.val_fraction=0
        final_bits_per_char=float(trainer.callback_metrics.get("val/bits_per_char", math.nan)),
        step=trainer.global_step,
        vocab_size=module.model.config.known_vocab_size(),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        seconds=round(found[Timer].time_elapsed(), 1),
        chars_per_second=speed,
        stopped_early=bool(stopping and stopping.is_met),
    )
    return result, samples.latest if samples else None


@contextlib.contextmanager
def refusals_before_first_step(run: Run) -> Iterator[None]:
    """Turn whatever is raised before the first step into one line: the settings do not fit.

    After the first step an unexpected error is a bug, and keeps its traceback.
    """
    try:
        yield
    except (UserError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        is_output = isinstance(error, OSError) and error.filename is None  # standard output is full or closed
        if run.has_begun or is_output:
            raise
        reason = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise UserError(f"training = (not started): {reason}; change the setting that this names") from error
