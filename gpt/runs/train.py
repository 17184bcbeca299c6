"""The story of a run: configuration, text, model, training, result."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from gpt.callbacks import RunLogger, check_states
from gpt.callbacks.checkpoints import BestCheckpoint
from gpt.callbacks.samples import Samples
from gpt.callbacks.throughput import Throughput
from gpt.checkpoint import FORMAT
from gpt.config import RunConfig
from gpt.data import Data
from gpt.errors import UserError, one_line
from gpt.machine import keep_freed_memory
from gpt.module import Diverged, GPTModule
from gpt.runs.folder import Run
from gpt.runs.init import Weights, starting_weights
from gpt.runs.machine import describe_origin, silence_lightning
from gpt.runs.recipes import Recipe, recipe_of
from gpt.runs.result import Result
from gpt.runs.resume import check_resumable, check_same_text, keep_resolved, note_differences
from gpt.runs.trainer import RunOptions, make_trainer


def train(config: RunConfig, folder: Path, options: RunOptions = RunOptions()) -> Result:  # noqa: B008 - frozen
    """Train in `folder` as `config` says, or go on with what the folder has of this run, and return its result.

    Raises UserError, and leaves everything as it was, if the run cannot be done.
    """
    silence_lightning()
    keep_freed_memory()
    with Run(folder) as run:
        recipe = recipe_of(config)
        weights = starting_weights(config, run)
        config, data, reasons = resolve(config, run, recipe, weights)
        if (result := run.result) and has_ended(config, result):
            return result
        with refusals_before_first_step(run):
            trainer = make_trainer(config, run, make_metadata(config, data, recipe), options)
            module = make_module(config, data, weights)
            restore_loggers(trainer, run)
            origin = describe_origin(trainer, options.command, options.overrides, data.sha256)
            run.plan(config, origin | ({"init_sha256": weights.sha256} if weights else {}))
            if not options.quiet:
                announce(module, recipe.describe(data), reasons)
            start = time.perf_counter()
            fit(trainer, module, data, run.checkpoint)
        result, sample = collect_result(trainer, module, time.perf_counter() - start)
        best = run.folder / "checkpoints" / "best.ckpt"
        result = recipe.complete(result, config, data, module, best if best.exists() else None)
        run.finish(result, sample)
    return result


def resolve(
    config: RunConfig, run: Run, recipe: Recipe, weights: Weights | None
) -> tuple[RunConfig, Data, list[str]]:
    """The configuration with everything decided, the data, and the reasons for what was chosen for this machine.

    Raises UserError if the folder has another run than this one.
    """
    stored = run.config
    config = keep_resolved(config, stored) if stored else config
    if stored:
        check_same_text(run, recipe.text(config))
    data = recipe.make_data(config, weights.tokenizer if weights else run.tokenizer)
    config, reasons = recipe.limit(config, data).resolve(data)
    if stored:
        check_resumable(run, config, stored, data.sha256)
    return config, data, reasons


def has_ended(config: RunConfig, result: Result) -> bool:
    """Whether a result is that of the whole run, and not of one that `max_time` or a smaller `max_steps` had cut short."""
    return result.step >= config.trainer.max_steps or "early_stopping" in config.callbacks


def make_metadata(config: RunConfig, data: Data, recipe: Recipe) -> dict[str, Any]:
    """What a checkpoint says about itself, in plain types: enough for `gpt.checkpoint` to make the model again."""
    return {
        "format": FORMAT,
        "model": asdict(config.model),
        "tokenizer": data.tokenizer.state,
        "text_sha256": data.sha256,
        "config": config.to_dict(),
        **recipe.metadata(data),
    }


def make_module(config: RunConfig, data: Data, weights: Weights | None = None) -> GPTModule:
    """The model as Lightning trains it. What does not come from other weights is drawn from the run's seed."""
    L.seed_everything(config.seed, verbose=False)
    return recipe_of(config).make_module(config, data, weights)


def restore_loggers(trainer: L.Trainer, run: Run) -> None:
    """Let the loggers go on where the checkpoint was. What was logged after it will be logged again.

    Raises UserError for a checkpoint whose callbacks have states that are not of this project.
    """
    step = 0
    if run.content is not None:
        note_differences(run, trainer)
        check_states(trainer.callbacks, run.content["callbacks"])  # type: ignore[attr-defined]
        step = run.content["global_step"]
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.resume(step)


@rank_zero_only
def announce(module: GPTModule, described: str, reasons: Sequence[str]) -> None:
    """Print what is trained on what, and what was chosen for this machine."""
    parameters = sum(parameter.numel() for parameter in module.parameters())
    lines = [f"{parameters:,} parameters, {described}", "; ".join(reasons)]
    print("\n".join(filter(None, lines)), flush=True)


def fit(trainer: L.Trainer, module: GPTModule, data: Data, checkpoint: Path | None) -> None:
    """Train to the end. Raises UserError that names the last good checkpoint if the run diverges."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except Diverged as error:
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        raise UserError(
            f"{error}; its last good checkpoint is {last}" if last.exists() else str(error)
        ) from None
    if (
        "val/loss" not in trainer.callback_metrics
    ):  # all steps had been taken, and only the result was missing
        trainer.loggers = []  # they have logged it
        trainer.validate(module, datamodule=data, verbose=False)


def collect_result(trainer: L.Trainer, module: GPTModule, seconds: float) -> tuple[Result, str | None]:
    """The numbers of a run that has ended, and the last text that the model wrote (None if it was not asked to)."""
    best, throughput, samples = (
        find_callback(trainer, kind) for kind in (BestCheckpoint, Throughput, Samples)
    )
    result = Result(
        best_val_loss=best.score if best else None,
        best_step=best.step if best and best.score is not None else None,
        final_val_loss=trainer.callback_metrics["val/loss"].item(),
        final_bits_per_char=trainer.callback_metrics["val/bits_per_char"].item(),
        step=trainer.global_step,
        vocab_size=module.model.config.known_vocab_size(),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        seconds=round(throughput.elapsed if throughput else seconds, 1),
        chars_per_second=round(throughput.characters / throughput.seconds, 1)
        if throughput and throughput.seconds
        else None,
    )
    return result, samples.latest if samples else None


def find_callback(trainer: L.Trainer, kind: type[Callback]) -> Any:
    """The callback of a kind. None if the configuration left it out."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, kind)), None)


@contextlib.contextmanager
def refusals_before_first_step(run: Run) -> Iterator[None]:
    """Turn whatever Lightning, torch or a callback raises before the first step into one line: the settings do not fit.

    After the first step an unexpected error is a bug, and keeps its traceback.
    """
    try:
        yield
    except (UserError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        is_output = (
            isinstance(error, OSError) and error.filename is None
        )  # standard output was closed, or is full
        if run.started or is_output:
            raise
        reason = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise UserError(f"training = (not started): {reason}; change the setting that this names") from error
