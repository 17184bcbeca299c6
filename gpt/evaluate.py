"""The exact loss of a trained model on all of a text's validation split and all of its training split."""

import math
import sys
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from gpt.config import RunConfig
from gpt.data import TextData
from gpt.ensemble import Ensemble
from gpt.errors import UserError
from gpt.machine import silence_lightning
from gpt.model import GPT
from gpt.module import GPTModule
from gpt.text import Text
from gpt.tokenizer import Tokenizer

BAR = {"bar_format": "{desc} {n:,}/{total:,} {bar} ETA {remaining}", "dynamic_ncols": True, "leave": False}


def evaluate(
    model: GPT | Ensemble,
    tokenizer: Tokenizer,
    metadata: dict[str, Any],
    path: str | None = None,
    context_length: int | None = None,
) -> dict[str, dict[str, Any]]:
    """The losses of a model, as `gpt.checkpoint.load` returns it, on its run's text or on the one at `path`.

    Each split is cut into windows of `context_length` tokens, by default as many as the model sees.
    Returns {"val": {"loss": ..., "bits_per_char": ..., "bits_per_byte": ..., "unit": ...}, "train": ...}.
    Losses are in nats per unit (character, byte or token), in float32, as a run validates, so they are the
    same numbers. A terminal shows the progress. Raises UserError for a text that the model cannot read, and
    for the run's own text if it has been changed.
    """
    length = model.config.context_length
    if context_length is not None and context_length > length:
        raise UserError(f"--context-length = {context_length}: the model sees at most {length} tokens")
    stored: dict[str, Any] = metadata["config"]
    # The folder that may be written to is this one's, wherever the model was trained
    changes: dict[str, Any] = {"folder": "data", "extend_vocabulary": False}
    changes |= {} if path is None else {"path": path, "val_path": None}
    config = RunConfig.from_dict({"data": stored["data"] | changes}).data
    if path is None and Text(config, tokenizer.reads_bytes).sha256 != metadata["text_sha256"]:
        reason = "no longer the text that this model has seen; give it with --data FILE"
        raise UserError(f"data.path = {config.path}: {reason}")
    data = TextData(config, context_length or length, seed=0, tokenizer=tokenizer)
    silence_lightning()
    module = GPTModule(model, lengths=tokenizer.lengths)  # type: ignore[arg-type]  # or several
    # A run that chose the CPU is evaluated there: another device would round differently
    accelerator = "cpu" if stored.get("trainer", {}).get("accelerator") == "cpu" else "auto"
    silent = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    quiet: dict[str, Any] = dict.fromkeys(silent, False)
    trainer = L.Trainer(accelerator=accelerator, devices=1, precision="32-true", **quiet)
    losses = {}
    for split, ids in (("val", data.val_ids), ("train", data.train_ids)):
        if not len(ids):  # data.val_fraction=0
            continue
        with tqdm(data.exact(ids), split, disable=None, **BAR) as batches:  # None: no bar without a terminal
            (metrics,) = trainer.validate(module, batches, verbose=False)
        named = {name.removeprefix("val/"): value for name, value in metrics.items()}
        losses[split] = named | {"unit": tokenizer.loss_unit}
    return losses


@torch.inference_mode()
def score(
    model: GPT | Ensemble, tokenizer: Tokenizer, text: str, context_length: int | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """How much each token of a text surprised the model, -log p in nats (T,), and the losses that they make.

    The text is taken as a whole, however short. It begins as a sample does, after the tokenizer's default
    prompt, and each token is predicted from at least the half of `context_length` tokens before it. Raises
    UserError for an empty text, and for characters that the tokenizer does not know.
    """
    ids = torch.cat((tokenizer.encode(tokenizer.default_prompt)[-1:], tokenizer.encode(text)))
    limit = min(context_length or sys.maxsize, model.config.context_length)
    inputs, targets, done, found = ids[:-1], ids[1:], 0, []
    if not text:
        raise UserError("text = '': nothing to score; give at least one character")
    while done < len(targets):
        start = max(0, done - limit // 2)
        logits = model(inputs[None, start : start + limit])[0, done - start :].float()
        found.append(F.cross_entropy(logits, targets[done : start + limit], reduction="none"))
        done = start + limit
    surprises = torch.cat(found)
    nats = surprises.double().sum().item()
    loss, bits = nats / len(targets), nats / math.log(2)
    per = {"bits_per_char": bits / len(text), "bits_per_byte": bits / len(text.encode())}
    return surprises, {"loss": loss, **per, "unit": tokenizer.loss_unit}
