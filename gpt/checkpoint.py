"""Checkpoints: safetensors files whose header tells everything else as JSON. Nothing in one can be executed.

best.safetensors holds the weights of a model under their own names (`tokens.weight`,
`blocks.0.attn.qkv.weight`), so any program can read them. In the header, "gpt" is what makes the model again:
format (5), model (a ModelConfig), tokenizer (its state), text_sha256, config (all settings of the run), step,
and for a fine-tuned model task. "training" in the header is a tree of plain values, in which {"tensor": NAME}
stands for a tensor of the file: what training continues from, in last.safetensors, and of a language model
the table of a `gpt.draft.Drafter`, which readers may ignore.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from gpt.config import ModelConfig, explain
from gpt.draft import Drafter
from gpt.errors import UserError, shorten
from gpt.files import PRETRAINED, atomic
from gpt.model import GPT
from gpt.tokenizer import Tokenizer, restore

FORMAT = 5
SUFFIX = ".safetensors"
LARGEST_HEADER = 2**26  # bytes. The largest vocabulary takes a tenth of it
LARGEST_ROTARY_TABLE = 2**25  # numbers. It is the only large tensor of a model that is not in its checkpoint
OWN = "use a checkpoint that this project wrote"


def refusal(path: Path, reason: str, advice: str = OWN) -> UserError:
    return UserError(f"checkpoint = {path}: {reason}; {advice}")


def checkpoint_path(run: str | Path, name: str) -> Path:
    """Where a run keeps its checkpoint called `best` or `last`."""
    return Path(run) / "checkpoints" / f"{name}{SUFFIX}"


def find(place: str | Path) -> Path:
    """The checkpoint file that `place` means: a file, a run folder, or "pretrained" for gpt's own.

    Of a run it is the best, or the last if there is no best yet. Raises UserError if there is none.
    """
    if place == "pretrained":
        return PRETRAINED
    path = Path(place)
    if os.path.isdir(path):  # unlike path.is_dir(), this raises nothing for a name that is too long
        best, last = (checkpoint_path(path, name) for name in ("best", "last"))
        path = last if last.exists() and not best.exists() else best
    former = path.with_suffix(".ckpt")
    if os.path.exists(former) and (path == former or not os.path.isfile(path)):
        raise refusal(former, "from an old version", "python scripts/convert_checkpoint.py RUN converts it")
    if not os.path.isfile(path):
        raise refusal(path, "no such file", "give a run folder or file")
    return path


def load(place: str | Path) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """The language model that `find(place)` has, in eval mode, its tokenizer, and the run's metadata.

    Raises UserError as `assemble` does, and for a fine-tuned model, which `gpt.finetune.predict` loads.
    """
    path = find(place)
    content = read(path)
    if content["gpt"].get("task") is not None:
        advice = "python scripts/classify.py RUN uses it; give the run of a language model here"
        raise refusal(path, "a model that was fine-tuned for a task, not a language model", advice)
    return assemble(path, content)


def assemble(path: Path, content: Mapping[str, Any]) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """The model in what `read(path)` has found, of either kind, in eval mode, its tokenizer, and the
    metadata.

    Raises UserError for metadata that make no model, and for weights that do not fit them. Sizes are compared
    before a model is made, so that none takes more memory than its file.
    """
    metadata, weights = content["gpt"], content["state_dict"]
    try:
        config, tokenizer = ModelConfig.model_validate(metadata["model"]), restore(metadata["tokenizer"])
        task, extra = metadata.get("task"), 0
        if task is not None:
            from gpt.finetune import model as finetune  # the core knows fine-tuning by this line alone

            kind = task["kind"], len(task["labels"]), bool(task.get("surprise"))
            extra = finetune.extra_parameters(config, *kind)
        drafter = Drafter(content["draft"], len(tokenizer)) if "draft" in content else None
    except (KeyError, TypeError, ValueError) as error:
        reason = explain(error, "model") if isinstance(error, ValidationError) else error
        raise refusal(path, f"its metadata makes no model ({shorten(reason, 200)})") from None
    if config.vocab_size != len(tokenizer):
        sizes = f"vocab_size = {config.vocab_size}, but its tokenizer has {len(tokenizer)} tokens"
        raise refusal(path, sizes)
    if config.positions == "rotary" and config.context_length * config.head_size > LARGEST_ROTARY_TABLE:
        raise refusal(path, f"context_length = {config.context_length}: longer than that of any model here")
    # tied weights count once
    unique = {(tensor.data_ptr(), tensor.shape): tensor.numel() for tensor in weights.values()}
    if (held := sum(unique.values())) != (needed := config.parameter_count() + extra):
        raise refusal(path, f"holds {held:,} parameters, where its sizes ask for {needed:,}")
    if broken := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
        raise refusal(path, f"non-finite weights in {len(broken)} tensors, {broken[0]} first")
    model = GPT(config) if task is None else finetune.Classifier(config, *kind)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise refusal(path, f"another architecture than it says: {shorten(error, 200)}") from None
    model.draft = drafter
    return model.eval(), tokenizer, metadata


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write "gpt" (metadata), "state_dict" (weights) and whatever else training continues from, atomically.

    That may hold dictionaries with keys of text or whole numbers, lists, tuples, plain values and tensors.
    Raises UserError if the file cannot be written, and TypeError for any other value.
    """
    tensors: dict[str, Tensor] = {}
    names: dict[Any, str] = {}
    state = content["state_dict"].items()
    weights = {name: encode(tensor, name, tensors, names)["tensor"] for name, tensor in state}
    rest = {key: value for key, value in content.items() if key not in ("gpt", "state_dict")}
    header = {"format": "pt", "gpt": json.dumps(content["gpt"])}
    header["tied"] = json.dumps({name: of for name, of in weights.items() if name != of})
    if rest:
        header["training"] = json.dumps(encode(rest, "training", tensors, names))
    header["sha256"] = checksum(tensors)
    with atomic(path) as file:
        file.write(save(tensors, header))


def read(path: Path) -> dict[str, Any]:
    """What was given to `write`: plain values, and tensors on the CPU. Tuples come back as lists.

    Raises UserError for a file that is missing, truncated, damaged in any bit of its tensors, or not of this
    project.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise SafetensorError("no header of such a file")
        with safe_open(path, "pt") as opened:
            header: dict[str, str] = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if "gpt" not in header:
            raise refusal(path, "not one of this project's", "give a run folder under outputs/")
        metadata = dict(json.loads(header["gpt"]))
        if (found := metadata.get("format")) != FORMAT:
            reason = f"its format is {shorten(found)}, this version reads {FORMAT}"
            raise refusal(path, reason, "use the version that wrote it")
        if header.get("sha256") != checksum(tensors):
            raise refusal(path, "damaged: its tensors are not those that were written")
        weights = {name: tensor for name, tensor in tensors.items() if not name.startswith("training/")}
        weights |= {name: tensors[of] for name, of in json.loads(header["tied"]).items()}
        rest = decode(json.loads(header["training"]), tensors) if "training" in header else {}
        return {"gpt": metadata, "state_dict": weights} | rest
    except UserError:
        raise
    except OSError as error:
        raise refusal(path, str(error.strerror or error), "give one that can be read") from None
    except SafetensorError as error:
        raise refusal(path, f"truncated or not a checkpoint ({shorten(error, 100)})") from None
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise refusal(path, "its header is damaged") from None


def encode(value: Any, name: str, tensors: dict[str, Tensor], names: dict[Any, str]) -> Any:
    """`value` as JSON has it. Each of its tensors goes into `tensors` once, under the path `names` notes."""
    if isinstance(value, Tensor):
        place = names.setdefault((value.data_ptr(), value.shape, value.stride(), value.dtype), name)
        if place == name:
            tensor = value.detach().cpu().contiguous()
            is_part = tensor.untyped_storage().nbytes() != tensor.nbytes  # of a storage that others share
            tensors[name] = tensor.clone() if is_part else tensor
        return {"tensor": place}
    if isinstance(value, Mapping):  # as pairs: JSON would turn the keys 0, 1, 2 of an optimizer into text
        pairs = value.items()
        return {"items": [[key, encode(inner, f"{name}/{key}", tensors, names)] for key, inner in pairs]}
    if isinstance(value, (list, tuple)):
        return [encode(inner, f"{name}/{number}", tensors, names) for number, inner in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}, which no checkpoint can hold")


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(inner, tensors) for inner in value]
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: decode(inner, tensors) for key, inner in value["items"]}
    return value


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of the bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
