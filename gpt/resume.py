"""What is decided once, when a run begins, and what must agree when it is resumed."""

import math
from collections.abc import Mapping
from typing import Any

from gpt.config import INDIFFERENT, RunConfig
from gpt.data import Data
from gpt.errors import UserError, shorten
from gpt.machine import choose_compilation, choose_precision, device_type, has_compiler
from gpt.run import Run

# Settings that may change on resume: none of them changes the batches or the model. Other devices change the
# last digits
OF_TRAINER = ("max_steps", "max_time", "accelerator", "devices", "num_nodes", "strategy")
MAY_CHANGE = INDIFFERENT | {f"trainer.{name}" for name in OF_TRAINER}
DECISIVE = ("best", "last", "ema", "early_stopping")  # callbacks: what a run computes or leaves behind
NO_LIMIT = 10**9  # the largest trainer.max_steps, which conf/finetune.yaml sets
VALIDATIONS = (8, 7, 9, 6, 10)  # how many of them a run may have by default, in the order of preference


def validation_interval(max_steps: int) -> int:
    """The steps between validations by default: about an eighth of all, so that the last interval is full."""
    intervals = [math.ceil(max_steps / number) for number in VALIDATIONS]
    return min(intervals, key=lambda interval: -max_steps % interval)  # the steps that the last one lacks


def resolve(config: RunConfig, stored: RunConfig | None, data: Data) -> tuple[RunConfig, list[str]]:
    """The configuration with everything decided that depends on the text and the machine, and the reasons.

    What was decided when a run began stays: another machine, or more steps, might decide otherwise. Raises
    UserError if the text has another vocabulary than was asked for.
    """
    model, trainer, reasons = config.model, config.trainer, []
    had_size = stored.model.vocab_size if stored else None  # of another text, perhaps: see check_resumable
    if model.vocab_size not in (None, had_size, size := len(data.tokenizer)):
        reason = f"the text has {size} {data.unit}; leave it out"
        raise UserError(f"model.vocab_size = {model.vocab_size}: {reason}")
    model = model.model_copy(update={"vocab_size": size})
    max_steps = min(trainer.max_steps, data.max_steps or trainer.max_steps)
    if max_steps < trainer.max_steps < NO_LIMIT:
        limit = f"trainer.max_steps = {trainer.max_steps:,}"
        reasons.append(f"{max_steps:,} steps: the epochs that are set end before {limit}")
    had, device = (stored or config).trainer, device_type(trainer.accelerator)
    precision = had.precision if trainer.precision == "auto" else trainer.precision
    compiled = had.compile if trainer.compile is None else trainer.compile
    if precision == "auto":
        precision, reason = choose_precision(device)
        reasons.append(reason)
    if compiled is None:
        batches = max_steps * trainer.accumulate_grad_batches
        flops = model.flops_per_token() * config.tokens_per_batch * batches
        has_masks = model.activation == "relu" or (model.dropout > 0 and model.attention_dropout)
        compiled, reason = choose_compilation(device, precision, flops, has_masks)
        reasons.append(reason)
    elif compiled and not has_compiler(device):
        compiled = False
        reasons.append("not compiled: there is no C++ compiler")
    interval = trainer.val_check_interval or had.val_check_interval or validation_interval(max_steps)
    decided = dict(precision=precision, compile=compiled, val_check_interval=interval, max_steps=max_steps)
    return config.model_copy(update={"model": model, "trainer": trainer.model_copy(update=decided)}), reasons


def check_resumable(
    run: Run, config: RunConfig, stored: RunConfig, data: Data, content: Mapping[str, Any] | None
) -> None:
    """Raises UserError if continuing with `config` and `data` would make another run than that in the folder.

    `content` is that of the checkpoint to continue from, None if there is none yet.
    """
    begin_new = f"begin a new run from its weights: init={run.folder}"
    if run.origin.get("text_sha256") != data.sha256:
        name = (config.task and config.task.path) or config.data.path or "null"
        reason = f"not the text that the run in {run.folder} has seen; use that one, or {begin_new}"
        raise UserError(f"data.path = {name}: {reason}")
    if content is not None:
        stored = RunConfig.from_dict(content["gpt"]["config"])  # which no one has edited, unlike config.yaml
    asked, had = decisive_settings(config), decisive_settings(stored)
    if not any(key.startswith("callbacks.early_stopping") for key in had):  # which may be added later
        had |= {key: value for key, value in asked.items() if key.startswith("callbacks.early_stopping")}
    keys = [key for key in {**asked, **had} if key not in MAY_CHANGE and asked.get(key) != had.get(key)][:5]
    if keys:
        now, before = (", ".join(shorten(values.get(key)) for key in keys) for values in (asked, had))
        other = begin_new if config.task is None else "choose another folder"
        advice = f"leave it out, or {other}"
        raise UserError(f"{', '.join(keys)} = {now}: the run in {run.folder} has {before}; {advice}")
    steps, result = config.trainer.max_steps, run.result
    taken = content["global_step"] if content is not None else result.step if result else 0
    if taken > steps:
        reason = f"the run in {run.folder} has taken {taken} steps; set more"
        raise UserError(f"trainer.max_steps = {steps}: {reason}")
    has_ended = result is not None and (result.step >= steps or result.stopped_early)
    lacks = "no checkpoint to continue from" if result and content is None and not has_ended else ""
    if content and not content.get("optimizer_states"):
        lacks = "weights alone, no optimizer state"
    if lacks:
        raise UserError(f"resume = {run.folder}: {lacks}; begin again in another folder")


def decisive_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that a run cannot change, by name. What is switched off by null is left out."""
    callbacks = ((name, config.callbacks.get(name, {})) for name in DECISIVE)
    more = {f"callbacks.{name}.{key}": value for name, node in callbacks for key, value in node.items()}
    return {key: value for key, value in (config.flat() | more).items() if value is not None}
