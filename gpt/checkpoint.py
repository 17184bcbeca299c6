"""Checkpoints: finding, reading and loading them. Nothing in them is executed, and everything is checked before it is used.

A checkpoint is Lightning's, with the run's metadata under "gpt", from which the model can be made again:
    format (4), model (the fields of ModelConfig), tokenizer (its state), text_sha256, config (all settings of the run),
    and for a fine-tuned model task (its name, kind and labels)
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt.archive import Refused, read_archive, walk
from gpt.config import ModelConfig
from gpt.errors import UserError, build, shorten
from gpt.files import PRETRAINED
from gpt.model import GPT
from gpt.tokenizer import Tokenizer, restore
from gpt.training_state import PREFIX, check_training_state, compare_weights, describe_model

__all__ = ["FORMAT", "assemble", "check_training_state", "find", "load", "read", "tensors_in"]

FORMAT = 4
LARGEST_ROTARY_TABLE = 2**25  # numbers. It is the only large tensor of a model that is not in its checkpoint
OWN = "use a checkpoint that this project wrote"


def refusal(path: Path, reason: str, advice: str = OWN) -> UserError:
    return UserError(f"checkpoint = {path}: {reason}; {advice}")


def find(place: str) -> Path:
    """The checkpoint file that `place` means: a .ckpt file, or a run folder.

    Of a run, that is its best checkpoint, or its last if it has not been validated yet. Raises UserError if there is none.
    """
    if "://" in place:
        raise UserError(f"checkpoint = {place}: addresses are not read; download the file and give its path")
    path = Path(place)
    if os.path.isdir(path):  # unlike path.is_dir(), this raises nothing for a name that is too long
        best, last = (path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
        path = last if last.exists() and not best.exists() else best
    if not os.path.isfile(path):
        raise refusal(path, "no such file", "give a run folder under outputs/ or a .ckpt file")
    return path


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file: dictionaries, lists, plain values, and tensors on the CPU. Raises UserError."""
    if not os.path.isfile(path):  # a pipe would be waited for
        raise refusal(path, "no such file", "give a run folder or a .ckpt file")
    try:
        content = read_archive(path)
    except Refused as error:
        raise refusal(path, f"refused, nothing was run: {shorten(error, 200)}") from None
    except PermissionError as error:
        raise refusal(path, str(error.strerror), "give a checkpoint that can be read") from None
    except Exception:  # there is an exception of another kind for each kind of damage
        beside = "best" if path.name == "last.ckpt" else "last"
        damage = f"truncated or not a checkpoint ({path.stat().st_size:,} bytes)"
        raise refusal(path, damage, f"use another one, such as {beside}.ckpt beside it") from None
    if not (
        isinstance(content, dict) and all(isinstance(content.get(key), dict) for key in ("gpt", "state_dict"))
    ):
        raise refusal(
            path, "not one of this project's", "give a run folder under outputs/ or a .ckpt file in one"
        )
    if any(True for _ in tensors_in(content["gpt"])):
        raise refusal(
            path, "refused, nothing was run: it has tensors in its metadata, where none of ours has any"
        )
    if foreign := [
        key for key in content if "hyper_parameters" in str(key)
    ]:  # Lightning would make objects from them
        held = f"{shorten(foreign[0])} ({shorten(content[foreign[0]], 100)})"
        raise refusal(path, f"refused, nothing was run: it has {held}, which none of ours has")
    if (found := content["gpt"].get("format")) != FORMAT:
        reason = f"its format is {shorten(found)}, this version reads {FORMAT}"
        raise refusal(
            path,
            reason,
            "make it anew: make pretrained" if path == PRETRAINED else "use the version that wrote it",
        )
    return content


def load(path: Path) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """The language model of a checkpoint in eval mode, its tokenizer, and the run's metadata.

    Raises UserError as `assemble` does, and for a fine-tuned model, which `gpt.finetune.predict.load_answerer` loads.
    """
    content = read(path)
    if content["gpt"].get("task") is not None:
        advice = "python scripts/classify.py RUN uses it; give the run of a language model here"
        raise refusal(path, "a model that was fine-tuned for a task, not a language model", advice)
    return assemble(path, content)


def assemble(path: Path, content: dict[str, Any]) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """The model in what `read(path)` has found, of either kind, in eval mode, its tokenizer, and the run's metadata.

    Raises UserError for a file that is damaged or does not fit together. The sizes that it claims are compared with its
    tensors before a model is made, so that the weights of none take more memory than the file. A rotary table, which no file
    holds, takes at most 256 MiB, and 0.7 GB while it is computed (LARGEST_ROTARY_TABLE).
    """
    metadata = content["gpt"]
    try:
        config, tokenizer = check_metadata(metadata)
        _, make, extra = describe_model(metadata)
    except (UserError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise refusal(path, f"its metadata makes no model ({shorten(error, 200)})") from None
    if difference := compare_weights(content["state_dict"], config, make, extra):
        raise refusal(path, difference, "use an earlier one, or one that was not altered")
    model = make(config)
    model.load_state_dict(
        {name.removeprefix(PREFIX): tensor for name, tensor in content["state_dict"].items()}
    )
    return model.eval(), tokenizer, metadata


def check_metadata(metadata: dict[str, Any]) -> tuple[ModelConfig, Tokenizer]:
    """The model's configuration and the tokenizer. Raises UserError, or whatever wrong types lead to."""
    config = build(ModelConfig, metadata["model"], "model")
    tokenizer = restore(metadata["tokenizer"])
    if config.vocab_size != len(tokenizer):
        raise UserError(f"model.vocab_size = {config.vocab_size}: its tokenizer has {len(tokenizer)} tokens")
    if (
        config.positions == "rotary"
        and (size := config.context_length * config.head_size) > LARGEST_ROTARY_TABLE
    ):
        raise UserError(
            f"model.context_length = {config.context_length}: longer than any model here ({size:,} rotary angles)"
        )
    if not isinstance(metadata.get("config"), dict) or not isinstance(metadata.get("text_sha256"), str):
        raise UserError("config, text_sha256 = (missing): every run stores them")
    return config, tokenizer


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors inside dictionaries, lists and tuples."""
    return (inner for inner, _ in walk(value) if isinstance(inner, Tensor))
