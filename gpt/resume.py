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
    *(f"data.{name}" for name in ("path", "val_path", "separator", "column", "folder")),
    "task.path",
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.profiler",
}
MAY_CHANGE |= {
    "trainer.log_every_n_steps",
    "trainer.detect_anomaly",
    "trainer.strategy",
    "trainer.accelerator",
}
MAY_CHANGE |= {"trainer.devices", "trainer.num_nodes"}
# callbacks that decide what a run computes or leaves behind
DECISIVE = ("best", "last", "ema", "early_stopping")


def resolve(config: RunConfig, stored: RunConfig | None, data: Data) -> tuple[RunConfig, list[str]]:
    """The configuration with everything decided that depends on the text and the machine, and the reasons.

    What was decided when a run began stays: another machine, or more steps, might decide otherwise. Raises
    UserError if the text has another vocabulary than was asked for.
    """
    model, trainer, reasons = config.model, config.trainer, []
    if model.vocab_size not in (None, vocab_size := len(data.tokenizer)):
        raise UserError(
            f"model.vocab_size = {model.vocab_size}: the text has {vocab_size} {data.unit}; leave it out"
        )
    model = model.model_copy(update={"vocab_size": vocab_size})
    max_steps = min(trainer.max_steps, data.max_steps or trainer.max_steps)
    had = stored.trainer if stored else trainer
    precision = had.precision if trainer.precision == "auto" else trainer.precision
    compiled = had.compile if trainer.compile is None else trainer.compile
    interval = trainer.val_check_interval or had.val_check_interval or max(1, max_steps // 8)
    device = device_type(trainer.accelerator)
    if precision == "auto":
        precision, reason = choose_precision(device)
        reasons.append(reason)
    if compiled is None:
        flops = (
            model.flops_per_token() * config.tokens_per_batch * max_steps * trainer.accumulate_grad_batches
        )
        has_masks = model.activation == "relu" or (model.dropout > 0 and model.attention_dropout)
        compiled, reason = choose_compilation(device, precision, flops, has_masks)
        reasons.append(reason)
    elif compiled and not has_compiler(device):
        compiled = False
        reasons.append("not compiled: there is no C++ compiler")
    decided = {
        "precision": precision,
        "compile": compiled,
        "val_check_interval": interval,
        "max_steps": max_steps,
    }
    return config.model_copy(update={"model": model, "trainer": trainer.model_copy(update=decided)}), reasons


def check_text(run: Run, config: RunConfig, data: Data) -> None:
    """Raises UserError if the data are not those that the run in the folder has seen."""
    if run.origin.get("text_sha256") != data.sha256:
        name = (config.task and config.task.path) or config.data.path or "null"
        reason = f"not the text that the run in {run.folder} has seen; use that one"
        advice = f"or begin a run from its weights with init={run.folder}"
        raise UserError(f"data.path = {name}: {reason}, {advice}")


def check_resumable(
    run: Run, config: RunConfig, stored: RunConfig, content: Mapping[str, Any] | None
) -> None:
    """Raises UserError if continuing with `config` would make another run than the one in the folder.

    `content` is that of the checkpoint to continue from, None if there is none yet.
    """
    asked, had = (
        one.flat() | {f"callbacks.{name}": one.callbacks.get(name) for name in DECISIVE}
        for one in (config, stored)
    )
    keys = [key for key in {**asked, **had} if key not in MAY_CHANGE and asked.get(key) != had.get(key)][:5]
    if keys:
        now, before = (", ".join(shorten(values.get(key)) for key in keys) for values in (asked, had))
        advice = "leave it out, or choose another folder"
        raise UserError(f"{', '.join(keys)} = {now}: the run in {run.folder} has {before}; {advice}")
    steps, result = config.trainer.max_steps, run.result
    taken = content["global_step"] if content is not None else result.step if result else 0
    if taken > steps:
        raise UserError(
            f"trainer.max_steps = {steps}: the run in {run.folder} has taken {taken} steps; set more"
        )
    has_ended = result is not None and (result.step >= steps or result.stopped_early)
    lacks = "no checkpoint to continue from" if result and content is None and not has_ended else ""
    lacks = lacks or (
        "weights alone, no optimizer state" if content and not content.get("optimizer_states") else ""
    )
    if lacks:
        raise UserError(f"resume = {run.folder}: {lacks}; begin again in another folder")
