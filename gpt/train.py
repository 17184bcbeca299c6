"""The story of a run: configuration, text, model, training, result.

`train` tells it in order, and what follows are its steps. A run with a task fine-tunes, and one without
pre-trains: `pretraining_parts` and `gpt.finetune.module` are all in which the two differ.
"""

import atexit
import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Timer

from gpt import callbacks as parts
from gpt.callbacks.trainer import RunOptions, make_trainer
from gpt.checkpoint import checkpoint_path, checksum, read
from gpt.config import RunConfig
from gpt.data import Data, TextData
from gpt.errors import UserError, one_line, shorten
from gpt.finetune.module import TaskData, finetuning_parts
from gpt.finetune.predict import naive_bayes_accuracy
from gpt.interop.weights import starting_weights
from gpt.machine import describe_machine, keep_freed_memory, leave_other_processes, silence_lightning
from gpt.model import GPT
from gpt.module import Diverged, GPTModule
from gpt.result import Result
from gpt.resume import check_resumable, resolve
from gpt.run import Run
from gpt.tokenizer import Tokenizer, restore


def train(config: RunConfig, folder: Path, options: RunOptions | None = None) -> Result:
    """Train in `folder` as `config` says, or continue what the folder has of this run, and return its result.

    Raises UserError, and leaves everything as it was, if the run cannot be done.
    """
    options = options or RunOptions()
    silence_lightning()
    keep_freed_memory()
    atexit.register(leave_other_processes)  # which Lightning does for NCCL alone
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
            return with_baseline(run, result, data)
        with refusals_before_first_step(run):
            origin = {"init_sha256": checksum(source.state_dict())} if source else {}
            trainer = make_trainer(config, run, data, options, origin)
            L.seed_everything(config.seed, verbose=False)  # of the weights that do not come from others
            module = make_module(config)
            resume_loggers(trainer, run, content)
            if trainer.is_global_zero and not options.quiet:
                parameters = sum(parameter.numel() for parameter in module.parameters())
                lines = [f"{parameters:,} parameters, {data.description}", "; ".join(reasons)]
                if content:
                    lines.append(f"{folder.name} continues at step {content['global_step']:,}")
                print(*filter(None, lines), sep="\n", flush=True)
            del content, source, make_module  # their tensors would take memory while the run trains
            fit(trainer, module, data, run)
        result, sample = collect_result(trainer, module)
        best = checkpoint_path(folder, "best")
        result = module.complete(result, data, best if best.exists() else None)
        if not run.has_begun:  # all steps had been taken before, and only the result was missing
            run.begin(config, origin)
        run.finish(result, sample)  # whatever becomes of the baseline, the result stands
        return with_baseline(run, result, data)


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


def with_baseline(run: Run, result: Result, data: Data) -> Result:
    """The result of a run that has ended, with the accuracy of a naive Bayes if the run has a task.

    It is written too. A run that was killed before has its result without one, and gets it when repeated.
    """
    if isinstance(data, TaskData) and result.naive_bayes_accuracy is None:
        accuracy = naive_bayes_accuracy(data.task)
        if accuracy is not None:
            result = result.model_copy(update={"naive_bayes_accuracy": accuracy})
            with contextlib.suppress(OSError, UserError), run.lock:  # another process may be at work there
                run.finish(result, None)
    return result


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
