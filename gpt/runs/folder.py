"""A run's folder: opened by one process at a time, and never trusted, because it may come from anybody."""

import contextlib
import functools
import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from filelock import FileLock, Timeout

from gpt.checkpoint import read
from gpt.config import RunConfig, read_config_file
from gpt.errors import UserError
from gpt.files import remove_staged, write_json, write_text
from gpt.runs.machine import is_first_process
from gpt.runs.result import Result
from gpt.tokenizer import Tokenizer, restore

CHECKPOINTS = ("best.ckpt", "last.ckpt")
BEFORE_FIRST_STEP = (
    ".lock",
    ".lock.pid",
    "checkpoints",
    "events.out.tfevents.*",
)  # what there is of a run by then
TEXTS = ("config.yaml", "run.json", "metrics.csv", "result.json", "sample.txt", "error.txt")


class Run:
    """The folder of one run, as a context manager: locked while it is open, and left as it was if nothing came of it.

    Raises UserError if another process works in it, or if there is anything in it but plain files and folders: a link would
    let whoever made the folder write anywhere.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.writes = is_first_process()  # of several processes, one keeps the folder
        self.started = (
            False  # whether a step of training has been taken: from then on it is kept, whatever happens
        )
        self.created: list[Path] = []  # folders that did not exist
        self.found: set[Path] = set()  # what was in this one
        self.lock = FileLock(self.folder / ".lock", timeout=0)

    # What is in the folder

    @property
    def config_file(self) -> Path:
        return self.folder / "config.yaml"

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to go on from. None if there is none yet.

        Raises UserError if there must have been one: to begin at step 0 would overwrite what is left of the run.
        """
        best, last = (self.folder / "checkpoints" / name for name in CHECKPOINTS)
        if best.exists() and not last.exists():
            raise UserError(
                f"checkpoint = {last}: missing, though the run has come further; restore it, or choose another folder"
            )
        return last if last.exists() else None

    @functools.cached_property
    def content(self) -> dict[str, Any] | None:
        """What the checkpoint to go on from holds. None if there is none yet. It is kept until `begin`."""
        return read(self.checkpoint) if self.checkpoint else None

    @property
    def config(self) -> RunConfig | None:
        """The configuration that the run began with. None if there is no run yet. Raises UserError if it is damaged."""
        return RunConfig.from_dict(read_run_config(self.config_file)) if self.config_file.exists() else None

    @property
    def result(self) -> Result | None:
        """The numbers of a run that has ended. None if it has not."""
        path = self.folder / "result.json"
        return Result.read(path) if path.exists() else None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of a run that goes on, unless the text alone determines it.

        One that was learnt is kept, because another version of its library might find other pieces, and so is one that came
        with the weights that the run began with.
        """
        if self.content is None or self.config is None:
            return None
        state = self.content["gpt"].get("tokenizer")
        is_simple = isinstance(state, Mapping) and state.get("kind") in ("char", "byte")
        return None if is_simple and self.config.init is None else restore(state)

    # Opening and closing

    def __enter__(self) -> "Run":
        if self.writes:
            check_plain(self.folder)
            for path in self.folder.glob("hpc_ckpt*"):  # Lightning would load it in place of ours
                raise UserError(
                    f"file = {path}: not one of this project's; remove it, or choose another folder"
                )
            self.created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.found = set(self.folder.glob("*"))
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._acquire()
            except OSError as error:
                self._remove_new()
                place = error.filename or self.folder
                raise UserError(
                    f"file = {place}: {error.strerror}; choose another hydra.run.dir, or make room"
                ) from None
        return self

    def _acquire(self) -> None:
        note = self.folder / ".lock.pid"
        try:
            self.lock.acquire()
        except Timeout:
            number = note.read_text(errors="replace")[:20] if note.is_file() else "(unknown)"
            raise UserError(
                f"run_dir = {self.folder}: process {number} is at work there; wait, or stop it"
            ) from None
        write_text(note, str(os.getpid()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writes:
            if error is not None and not self.started:
                self._remove_new()
            self.lock.release()

    def _remove_new(self) -> None:
        """Remove what has been made here for a run that never took a step."""
        for path in {path for name in BEFORE_FIRST_STEP for path in self.folder.glob(name)} - self.found:
            with contextlib.suppress(OSError):
                path.rmdir() if path.is_dir() else path.unlink()
        for path in self.created:
            with contextlib.suppress(OSError):  # something else is in it
                path.rmdir()

    # Beginning and ending

    def plan(self, config: RunConfig, described: Mapping[str, Any]) -> None:
        """Note what `begin` is to write: the configuration, and what run.json says of a run that is new."""
        self.planned = config, described
        self.__dict__.pop("content", None)  # its tensors would take memory while the run trains

    def begin(self) -> None:
        """Write config.yaml, which says that there is a run, and run.json, and remove what earlier attempts have left.

        Is called after the first step, so that there is nothing to undo if the settings turn out not to fit.
        """
        if self.started or not self.writes:
            return
        self.started = True
        config, described = self.planned
        origin = self.folder / "run.json"
        remove_staged(self.folder, TEXTS)
        remove_staged(self.folder / "checkpoints", CHECKPOINTS)
        (self.folder / "result.json").unlink(missing_ok=True)  # it describes a shorter run
        if origin.exists():
            os.utime(origin)  # by this time, resume=last finds the newest run
        else:
            write_json(origin, described)
        write_text(self.config_file, yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))

    def finish(self, result: Result, sample: str | None) -> None:
        """Write result.json, which says that the run has ended, and sample.txt."""
        self.begin()  # if all steps had been taken before, and only the result was missing
        if not self.writes:
            return
        if sample is not None:
            write_text(self.folder / "sample.txt", sample)
        result.write(self.folder / "result.json")
        (self.folder / "error.txt").unlink(missing_ok=True)  # an earlier attempt left it


@contextlib.contextmanager
def unused_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that no other process has, NAME or else NAME-2, and so on. It is removed again if it stays empty."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    found = folder
    for number in itertools.count(2):
        try:
            found.mkdir(parents=True)
            break
        except OSError:
            if not os.path.lexists(found):  # `Run` tells why
                break
            found = folder.with_name(f"{folder.name}-{number}")
    try:
        yield found
    finally:
        for path in (found, *missing):
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


def check_plain(folder: Path) -> None:
    """Raises UserError if a folder holds a link, a device or a pipe, at any depth."""
    for parent, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a link" if stat.S_ISLNK(mode) else "a device or a pipe"
                raise UserError(
                    f"file = {path}: {kind}, and a run's folder holds plain files; remove it, or choose another folder"
                )


def read_run_config(path: Path) -> dict[str, Any]:
    """The plain values in the config.yaml of a run that can be resumed. Raises UserError for one of an earlier version."""
    content = read_config_file(path)
    callbacks = content.get("callbacks")
    nodes = callbacks.values() if isinstance(callbacks, dict) else ()
    if any(isinstance(node, dict) and "_target_" in node for node in nodes):
        raise UserError(
            f"file = {path}: written by an earlier version; resume the run with that one, or begin anew"
        )
    return content
