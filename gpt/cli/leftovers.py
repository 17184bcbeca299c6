"""What jobs leave that were refused before they began, and how it is removed again."""

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from gpt.files import read_text

JOB_FILES = ("error.txt", ".lock", ".lock.pid")


def outermost_missing(folder: Path) -> Path | None:
    """The outermost folder on the way to `folder` that does not exist yet. None if `folder` exists."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    return missing[-1] if missing else None


def is_refusal(error: Path) -> bool:
    """Whether an error.txt is all that there is of a job, and tells of a user's mistake on its one line."""
    return not (error.parent / "config.yaml").exists() and len(read_text(error).splitlines()) == 1


def remove_refused(errors: Iterable[Path], created: Path, others: Sequence[Path] = ()) -> None:
    """Remove the error.txt of refused jobs and the files `others`, then what is empty of the folders from `created` on."""
    files = [*(error.parent / name for error in errors for name in JOB_FILES), *others]
    for path in files:
        path.unlink(missing_ok=True)
    emptied = {parent for path in files for parent in path.parents if parent.is_relative_to(created)}
    for folder in sorted(emptied, key=lambda folder: -len(folder.parts)):
        with contextlib.suppress(OSError):  # something else is in it
            folder.rmdir()
