"""A run's folder, which one process at a time writes into.

config.yaml says that there is a run and what it is, run.json where it comes from,
checkpoints/last.safetensors how far it has come, and result.json that it has ended.
"""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from filelock import FileLock, Timeout

from gpt.checkpoint import checkpoint_path
from gpt.config import RunConfig
from gpt.errors import UserError
from gpt.files import read_json, remove_staged, write_json, write_text
from gpt.machine import is_first_process
from gpt.result import Result


class FolderInUse(UserError):
    """Another process is at work in the folder of a run, or was since it was read."""


class Run:
    """The folder of a run. Nothing in it is made or changed before `begin`, after the first training step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.has_begun = False
        self.lock = FileLock(self.folder / ".lock", timeout=0)
        self.found = self.written()

    def written(self) -> list[int]:
        """When each file was written that tells how far the run is (0: it is not there)."""
        files = self.folder / "config.yaml", self.folder / "result.json", checkpoint_path(self.folder, "last")
        return [path.stat().st_mtime_ns if path.exists() else 0 for path in files]

    @property
    def last(self) -> Path | None:
        """The checkpoint to continue from. Without one (None), the run begins at its first step."""
        return path if (path := checkpoint_path(self.folder, "last")).exists() else None

    @property
    def config(self) -> RunConfig | None:
        """The configuration that the run began with. None if there is no run yet. Raises UserError."""
        exists = (self.folder / "config.yaml").exists()
        return RunConfig.from_dict(read_config(self.folder)) if exists else None

    @property
    def result(self) -> Result | None:
        """The numbers of a run that has ended. None if it has not."""
        return Result.read(path) if (path := self.folder / "result.json").exists() else None

    @property
    def origin(self) -> dict[str, Any]:
        """What run.json says. Empty if there is none."""
        return read_json(path) if (path := self.folder / "run.json").exists() else {}

    def begin(self, config: RunConfig, origin: Mapping[str, Any]) -> None:
        """Take the folder for this process, and write config.yaml and, for a new run, run.json.

        Raises FolderInUse if another process is at work in it or was since it was read, and UserError if it
        cannot be written.
        """
        self.has_begun = True
        if not is_first_process():  # of several processes, one keeps the folder
            return
        note = self.folder / ".lock.pid"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock.acquire()
        except Timeout:
            who = note.read_text(errors="replace")[:20] if note.exists() else "(unknown)"
            reason = f"process {who} is at work there; wait, or stop it"
            raise FolderInUse(f"run_dir = {self.folder}: {reason}") from None
        except OSError as error:
            place = error.filename or self.folder
            raise UserError(f"file = {place}: {error.strerror}; choose another hydra.run.dir") from None
        if self.written() != self.found:
            self.lock.release()
            reason = "another process has worked there meanwhile"
            raise FolderInUse(f"run_dir = {self.folder}: {reason}; run the command again")
        try:
            write_text(note, str(os.getpid()))
            for folder in (self.folder, self.folder / "checkpoints"):
                remove_staged(folder)
            (self.folder / "result.json").unlink(missing_ok=True)  # it describes a shorter run
            if self.found[0] and (path := self.folder / "run.json").exists():
                os.utime(path)  # by this time, the newest run is found
            else:
                write_json(self.folder / "run.json", origin)
            text = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
            write_text(self.folder / "config.yaml", text)
        except UserError:
            if not self.found[0]:  # there was no run, and a full disk is no reason to leave half a one
                self.remove()
            raise

    def remove(self) -> None:
        """Remove what `begin` has made, and the folder if nothing else is in it."""
        for name in ("run.json", ".lock.pid", ".lock"):
            (self.folder / name).unlink(missing_ok=True)
        self.lock.release()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def finish(self, result: Result, sample: str | None) -> None:
        """Write result.json, which says that the run has ended, and sample.txt."""
        if is_first_process():
            if sample is not None:
                write_text(self.folder / "sample.txt", sample)
            written = result.model_dump_json(indent=2, exclude_unset=True)
            write_text(self.folder / "result.json", written + "\n")
            (self.folder / "error.txt").unlink(missing_ok=True)  # an earlier attempt left it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.lock.release()


def read_config(folder: Path) -> dict[str, Any]:
    """The plain values of a run's config.yaml. Raises UserError if it is damaged, or from an old version."""
    path = folder / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        is_former = any("_target_" not in node for node in content["callbacks"].values())
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError):
        raise UserError(f"file = {path}: missing or damaged; restore it, or choose another folder") from None
    if is_former:
        advice = f"python scripts/convert_checkpoint.py {folder} converts the run"
        raise UserError(f"file = {path}: written by an earlier version; {advice}")
    return dict(content)
