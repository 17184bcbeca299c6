"""Files that are written whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gpt.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained" / "shakespeare.safetensors"  # ships with the package


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` if the block ends well. Otherwise `path` stays as it was.

    Raises UserError if it cannot be written.
    """
    target = Path(os.path.realpath(path))  # a rename would replace a link
    staged = target.with_name(f".{target.name}.tmp-{os.getpid()}")  # on the same file system
    try:
        if target.exists() and not target.is_file():
            raise OSError(0, "it is no regular file")  # root could replace even a device
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(staged, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, target)
    except OSError as error:
        raise UserError(f"file = {path}: not written, {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            staged.unlink()


def remove_staged(folder: Path, name: str = "*") -> None:
    """Remove what killed processes have left half written in `folder`. None may be writing there now."""
    for path in folder.glob(f".{name}.tmp-*"):
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8, atomically. Raises UserError if the file cannot be written."""
    with atomic(path) as file:
        file.write(text.encode(errors="backslashreplace"))


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON that a person can read, atomically. Raises UserError if the file cannot be written."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError if it is missing or damaged."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, TypeError, ValueError):
        advice = "restore it, or start again in another folder"
        raise UserError(f"file = {path}: missing or damaged; {advice}") from None
