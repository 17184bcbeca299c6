"""Files that are written whole or not at all, and never through a link that somebody else has placed."""

import contextlib
import json
import os
import platform
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gpt.errors import UserError

PRETRAINED = Path(__file__).parent / "pretrained" / "shakespeare.ckpt"  # ships with the package
LARGEST_TEXT = 2**27  # bytes: more than a million rows of metrics.csv


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Yield a binary file that becomes `path` if the block ends well. Otherwise `path` stays as it was and nothing is left.

    The file is staged beside its target, so that the last step is a rename within one file system.
    Raises UserError if `path` is a link or anything else that is not a regular file: a rename would replace it.
    """
    path = Path(path)
    check_replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = staged_path(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    staged.unlink(missing_ok=True)  # left by a killed process that had the same number
    try:
        with os.fdopen(os.open(staged, flags, 0o666), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise


def staged_path(path: Path) -> Path:
    """Where `atomic` keeps a file until it is whole. The name says which process of which machine is writing it."""
    return path.with_name(f".{path.name}.tmp-{platform.node()}-{os.getpid()}")


def remove_staged(folder: Path, names: tuple[str, ...]) -> None:
    """Remove what killed processes have left of the files called `names` in `folder`, and nothing else."""
    for name in names:
        for path in folder.glob(f".{name}.tmp-*"):
            if path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)


def check_replaceable(path: Path) -> None:
    """Raises UserError if `path` exists and is not a regular file."""
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    if not stat.S_ISREG(mode):
        kind = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise UserError(
            f"file = {path}: {kind}, which is not overwritten; move it away, or choose another name"
        )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8, atomically. Raises UserError if the file cannot be written."""
    try:
        with atomic(path) as file:
            file.write(text.encode(errors="backslashreplace"))
    except OSError as error:
        raise UserError(
            f"file = {path}: not written, {error.strerror}; make room, or choose another folder"
        ) from None


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON that a person can read, atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """The text of one of a run's own files of at most `largest` bytes, its line endings as they are.

    Raises UserError if it is missing, is not a regular file, is larger than any that this project writes, or is not UTF-8.
    """
    try:
        mode, size = path.stat().st_mode, path.stat().st_size
        if not stat.S_ISREG(mode) or size > largest:
            raise UserError(
                f"file = {path}: not a text file of this project; restore it, or begin anew in another folder"
            )
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"file = {path}: missing or damaged; restore it, or begin anew in another folder"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in one of a run's own files. Raises UserError as `read_text` does, and for anything but an object."""
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        content = None
    if not isinstance(content, dict):
        raise UserError(f"file = {path}: missing or damaged; restore it, or begin anew in another folder")
    return content
