"""Files that can be trusted: atomic writing, and reading that runs nothing and believes nothing.

A checkpoint is Lightning's, plus a card under "gpt" that says how to make the model again:
    format (3), model (the fields of GPTConfig), tokenizer (its state), text_sha256, config (the run's, resolved)
"""

import contextlib
import os
import pickle
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from gpt.model import GPT, GPTConfig, parameter_count
from gpt.settings import UserError, build
from gpt.tokenizer import Tokenizer, restore

if TYPE_CHECKING:
    from gpt.data import CharData

FORMAT = 3


@contextlib.contextmanager
def atomic(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` if the block ends well; else `path` stays as it was and nothing is left over."""
    path = Path(os.path.realpath(path))  # through links, so that the link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.tmp-{platform.node()}-{os.getpid()}")
    try:
        with open(staged, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8, atomically."""
    with atomic(path) as file:
        file.write(text.encode())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, staged beside their target: its own staging is in the temporary folder, which may be on
    another file system, where the last step is a copy over the good file and not a rename."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any | None = None) -> None:
        try:
            with atomic(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:  # torch wraps some of the former in the latter
            needed = sum(tensor.nbytes for tensor in tensors_in(checkpoint))
            free = shutil.disk_usage(Path(path).parent).free
            raise UserError(
                f"checkpoint = {path}: not written, {needed:,} bytes needed and {free:,} free "
                f"({getattr(error, 'strerror', None) or type(error).__name__}); make room and resume: the one before is whole"
            ) from None

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read(Path(path))


def moved(value: Any, old: str, new: str) -> Any:
    """Plain values with the path `old`, as far as they are in it, replaced by `new`: keys, values, whatever is inside."""
    if isinstance(value, dict):
        return {moved(key, old, new): moved(inner, old, new) for key, inner in value.items()}
    if isinstance(value, list):
        return [moved(inner, old, new) for inner in value]
    inside = isinstance(value, str) and (value == old or value.startswith(old + os.sep))
    return new + value[len(old) :] if inside else value


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All tensors inside dictionaries and lists."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(inner)


def make_card(config: GPTConfig, data: "CharData", run: dict[str, Any]) -> dict[str, Any]:
    """What `load` needs, in plain types; `run` is the resolved configuration, for a person to look up and to evaluate by."""
    return {
        "format": FORMAT,
        "model": asdict(config),
        "tokenizer": data.tokenizer.state,
        "text_sha256": data.sha256,
        "config": run,
    }


def find(place: str | None, outputs: str = "outputs") -> Path:
    """The checkpoint meant by a file, a run folder (its best, if it has been validated, else its last), or None (that of the
    newest run under `outputs`)."""
    if place is None:
        # Each checkpoint that is written, best or last, touches its folder
        found = {path.parent for path in Path(outputs).glob("**/checkpoints/*.ckpt")}
        if not found:
            raise UserError(f"checkpoint = (newest): no run under {outputs}/; train one first: python scripts/train.py")
        place = max(found, key=lambda folder: folder.stat().st_mtime).parent
        print(f"note: {place} is the newest run", file=sys.stderr)
    if "://" in str(place):
        raise UserError(f"checkpoint = {place}: addresses are not read; download the file and give its path")
    path = Path(place)
    if path.is_dir():
        best, last = (path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
        path = last if last.exists() and not best.exists() else best
    if not path.is_file():
        raise UserError(f"checkpoint = {path}: no such file; give a run folder under {outputs}/ or a .ckpt file")
    return path


def read(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file: plain types and tensors, on the CPU. Raises UserError if it is anything else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|Unsupported operand|global) `?([\w.]+)", str(error))
        what = f"it asks to run {found[1]}" if found else "it is no plain data"
        raise UserError(
            f"checkpoint = {path}: refused, nothing was run: {what}; use a checkpoint that this project wrote"
        ) from None
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise UserError(f"checkpoint = {path}: {error.strerror}; give a checkpoint that can be read") from None
    except Exception:  # each kind of damage is another one to torch: OSError, RuntimeError, EOFError, KeyError, ...
        size = path.stat().st_size
        raise UserError(
            f"checkpoint = {path}: truncated or not a checkpoint ({size:,} bytes); "
            f"use another one, such as {'best' if path.name == 'last.ckpt' else 'last'}.ckpt beside it"
        ) from None
    parts = [content.get(part) if isinstance(content, dict) else None for part in ("gpt", "state_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError(
            f"checkpoint = {path}: not one of this project's; give a run folder under outputs/ or a .ckpt file in one"
        )
    if foreign := [part for part in content if "hyper_parameters" in part]:  # from which Lightning would make objects
        raise UserError(
            f"checkpoint = {path}: refused, nothing was run: it has {', '.join(foreign)} "
            f"({content[foreign[0]]!s:.100}), which none of ours has; use a checkpoint that this project wrote"
        )
    found = content["gpt"].get("format")
    if found != FORMAT:
        raise UserError(f"checkpoint = {path}: its format is {found}, this version reads {FORMAT}; use the version that wrote it")
    return content


def load(path: Path) -> tuple[GPT, Tokenizer, dict[str, Any]]:
    """The model (eval mode), its tokenizer, and the card. Raises UserError for a file that is not whole.

    Sizes are checked against the tensors before a model is made of them, so a wrong one cannot ask for memory.
    """
    content = read(path)
    card, prefix = content["gpt"], "model."
    try:
        config = build(GPTConfig, card["model"], "model")
        tokenizer = restore(card["tokenizer"])
        if config.context_length > 2**20:  # rotary tables grow with it, and no tensor in the file says how long they were
            raise UserError(f"model.context_length = {config.context_length}: longer than any model here; at most {2**20}")
        if missing := {"text_sha256", "config"} - set(card):
            raise UserError(f"card = {missing}: missing; save it again")
        if not all(isinstance(tensor, torch.Tensor) for tensor in content["state_dict"].values()):
            raise UserError("state_dict = ...: holds what is no tensor; save it again")
    except (UserError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"checkpoint = {path}: its card makes no model ({error}); use a checkpoint that this project wrote"
        ) from None
    tensors = {name.removeprefix(prefix): tensor for name, tensor in content["state_dict"].items()}
    held = sum({tensor.data_ptr(): tensor.numel() for tensor in tensors.values()}.values())  # a tied head counts once
    needed = parameter_count(config)
    if held != needed or len(tokenizer) != config.vocab_size:
        raise UserError(
            f"checkpoint = {path}: holds {held:,} parameters and {len(tokenizer)} tokens, where its sizes ask for "
            f"{needed:,} and {config.vocab_size}; use a checkpoint that was not altered"
        )
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(
            f"checkpoint = {path}: non-finite weights in {len(broken)} tensors, {broken[0]} first; use an earlier one"
        )
    model = GPT(config)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"checkpoint = {path}: another architecture than its card says ({reason:.200}); use another one"
        ) from None
    return model.eval(), tokenizer, card
