"""Files that are written whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gpt.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained" / "shakespeare.safetensors"  # ships with the package
DAMAGED = "missing or damaged; restore it, or start again in another folder"


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` if the block ends well. Otherwise `path` stays as it was.

    The file is staged next to its target, so that the last step is a rename within one file system.
    Raises UserError if it cannot be written.
    """
    target = Path(os.path.realpath(path))  # a rename would replace a link
    staged = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        if target.exists() and not target.is_file():
            raise OSError(0, "it is no regular file")  # root could replace even a device
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(staged, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            staged.unlink()
        if isinstance(error, OSError):
            reason = f"not written, {error.strerror or error}; make room, or choose another place"
            raise UserError(f"file = {path}: {reason}") from None
        raise


def remove_staged(folder: Path) -> None:
    """Remove what killed processes have left half written in `folder`. None may be writing there now."""
    for path in folder.glob(".*.tmp-*"):
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8, atomically. Raises UserError if the file cannot be written."""
    with atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON that a person can read, atomically. Raises UserError if the file cannot be written."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_text(path: Path) -> str:
    """A text in UTF-8, its line endings as they are. Raises UserError if it is missing or damaged."""
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        raise UserError(f"file = {path}: {DAMAGED}") from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if it is missing or damaged."""
    try:
        return dict(json.loads(read_text(path)))
    except (TypeError, ValueError):
        raise UserError(f"file = {path}: {DAMAGED}") from None
