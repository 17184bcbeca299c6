"""What is decided once, when a run begins, and what must agree when it is resumed."""

from collections.abc import Mapping
from typing import Any

from gpt.config import RunConfig
from gpt.data import Data
from gpt.errors import UserError, shorten
from gpt.machine import choose_compilation, choose_precision, device_type, has_compiler
from gpt.run import Run

# Settings that may change on resume: none of them changes the batches or the model. Other devices change the
# last digits, and that a text somewhere else is the same one is checked by its SHA-256
MAY_CHANGE = {
    f"trainer.{name}" for name in ("max_steps", "max_time", "log_every_n_steps", "profiler", "detect_anomaly")
}
MAY_CHANGE |= {f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy")}
MAY_CHANGE |= {"data.path", "data.folder", "task.path"}
# callbacks that decide what a run computes or leaves behind
DECISIVE = ("best", "last", "ema", "early_stopping")


def resolve(config: RunConfig, stored: RunConfig | None, data: Data) -> tuple[RunConfig, list[str]]:
    """The configuration with everything decided that depends on the text and the machine, and the reasons.

    What was decided when a run began stays: another machine, or more steps, might decide otherwise. Raises
    UserError if the text has another vocabulary than was asked for.
    """
    vocab_size = len(data.tokenizer)
    if config.model.vocab_size not in (None, vocab_size):
        raise UserError(
            f"model.vocab_size = {config.model.vocab_size}: the text has {vocab_size} {data.unit}; leave it out"
        )
    config = config.updated("model", vocab_size=vocab_size)
    if data.max_steps is not None:
        config = config.updated("trainer", max_steps=min(config.trainer.max_steps, data.max_steps))
    if stored is not None:
        undecided = {"precision": "auto", "compile": None, "val_check_interval": None}
        asked, had = dict(config.trainer), dict(stored.trainer)
        config = config.updated(
            "trainer", **{key: had[key] for key, value in undecided.items() if asked[key] == value}
        )
    trainer, model, reasons = config.trainer, config.model, []
    precision, compiled, device = trainer.precision, trainer.compile, device_type(trainer.accelerator)
    if precision == "auto":
        precision, reason = choose_precision(device)
        reasons.append(reason)
    if compiled is None:
        batches = trainer.max_steps * trainer.accumulate_grad_batches
        has_masks = model.activation == "relu" or (model.dropout > 0 and model.attention_dropout)
        flops = model.flops_per_token() * config.tokens_per_batch * batches
        compiled, reason = choose_compilation(device, precision, flops, has_masks)
        reasons.append(reason)
    elif compiled and not has_compiler(device):
        compiled = False
        reasons.append("not compiled: there is no C++ compiler")
    interval = trainer.val_check_interval or max(1, trainer.max_steps // 8)
    return config.updated(
        "trainer", precision=precision, compile=compiled, val_check_interval=interval
    ), reasons


def check_text(run: Run, config: RunConfig, data: Data) -> None:
    """Raises UserError if the data are not those that the run in the folder has seen."""
    if run.origin.get("text_sha256") != data.sha256:
        name = (config.task and config.task.path) or config.data.path or "null"
        raise UserError(
            f"data.path = {name}: not the text that the run in {run.folder} has seen; use that one"
        )


def check_resumable(
    run: Run, config: RunConfig, stored: RunConfig, content: Mapping[str, Any] | None
) -> None:
    """Raises UserError if continuing with `config` would make another run than the one in the folder."""
    asked, had = (
        {f"callbacks.{name}": one.callbacks.get(name) for name in DECISIVE} for one in (config, stored)
    )
    asked, had = asked | config.flat(), had | stored.flat()
    keys = [key for key in {**asked, **had} if key not in MAY_CHANGE and asked.get(key) != had.get(key)]
    if keys:
        now, before = (", ".join(shorten(values.get(key)) for key in keys[:5]) for values in (asked, had))
        advice = "leave it out, or choose another folder"
        raise UserError(f"{', '.join(keys[:5])} = {now}: the run in {run.folder} has {before}; {advice}")
    steps, result = config.trainer.max_steps, run.result
    taken = content["global_step"] if content is not None else result.step if result else 0
    if taken > steps:
        raise UserError(
            f"trainer.max_steps = {steps}: the run in {run.folder} has taken {taken} steps; set more"
        )
    if result and content is None and result.step < steps and not result.stopped_early:
        reason = "it has ended and has no checkpoint to continue from"
        raise UserError(f"resume = {run.folder}: {reason}; begin again in another folder")
    if content is not None and not content.get("optimizer_states"):
        reason = "weights alone, no optimizer state"
        raise UserError(f"resume = {run.last}: {reason}; begin again in another folder")
