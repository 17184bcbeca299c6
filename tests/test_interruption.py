"""A process can be killed, and a disk can be full, at any single write: nothing that was trained is lost."""

import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from conftest import assert_same_run, train_in

SETTINGS = ["trainer.max_steps=4", "trainer.val_check_interval=2", "model.dropout=0.1"]
SETTINGS += ["data.path=../text.txt", "hydra.run.dir=run"]
CHANGES = {"open", "os.rename", "os.remove", "os.mkdir"}  # the audit events by which Python announces them
watchers: list[Callable[[], None]] = []


def tell_watchers(event: str, arguments: tuple) -> None:
    """An audit hook, which Python calls before each operation and which cannot be removed."""
    is_reading = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if event in CHANGES and not is_reading:
        for watcher in watchers:
            watcher()


sys.addaudithook(tell_watchers)


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder, but for those that only TensorBoard reads: nothing continues from them."""
    files = (path for path in folder.rglob("*") if path.is_file() and "tfevents" not in path.name)
    whole = {path: ".tmp-" not in path.name for path in files}  # of others, that they exist is enough
    return {str(path.relative_to(folder)): path.read_bytes() if whole[path] else b"" for path in whole}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of a run that nothing has interrupted."""
    return train_in(tmp_path_factory.mktemp("whole") / "work", *SETTINGS)


FILES = ["config.yaml", "run.json", "metrics.csv", "best.safetensors", "last.safetensors"]
FILES += ["sample.txt", "result.json"]


@pytest.mark.parametrize("name", FILES)
def test_full_disk_at_any_file_is_one_line_and_the_same_command_continues(
    name, small, succeed, whole, monkeypatch
):
    def fill_disk(source, target) -> None:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    rename = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fill_disk)
        code, _, err = small(*SETTINGS)
    assert code == 2, err
    assert re.fullmatch(rf"error: file = .*{name}: not written, No space left on device.*\n", err)
    assert not list(Path("run").rglob("*.tmp-*"))
    assert Path("run").exists() == (name not in ("run.json", "config.yaml"))  # then nothing was begun
    succeed(*SETTINGS)
    assert_same_run("run", whole)


@pytest.fixture
def states(tmp_path, succeed) -> Iterator[list[Path]]:
    """Copies of a run's folder, one for every state that a process killed in the course of it would leave."""
    found: list[Path] = []
    seen: list[dict[str, bytes]] = [{}]
    run = Path("run").resolve()

    def keep_state() -> None:
        with mock.patch.object(sys.modules[__name__], "watchers", []):  # copying is not part of the run
            if run.exists() and (now := contents(run)) != seen[-1]:
                seen.append(now)
                found.append(Path(shutil.copytree(run, tmp_path / f"state{len(found)}")))

    watchers.append(keep_state)
    try:
        succeed(*SETTINGS)
    finally:
        watchers.clear()
    shutil.rmtree(run)
    return found


def test_run_killed_at_any_write_ends_as_if_it_had_not_been(states, succeed, whole):
    names = {name for state in states for name in contents(state)}
    assert {"config.yaml", "run.json", "result.json", "checkpoints/best.safetensors"} <= names
    assert sum(".tmp-" in name for name in names) > 5  # half-written files are among the states
    for state in states:
        state.rename("run")
        succeed(*SETTINGS)
        assert_same_run("run", whole)
        assert not [path for path in Path("run").rglob("*.tmp-*")]
        shutil.rmtree("run")
