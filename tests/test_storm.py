"""One run is killed again and again at any moment, also in the middle of a save: `make test-slow`."""

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_resume import begin

from conftest import TINY, assert_same_run, read_checkpoint

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]


def life(process: subprocess.Popen, folder: Path, chance: random.Random) -> bool:
    """Let a process live for a while and kill it. Returns False if it had ended before."""
    aimed, number = chance.random() < 0.4, chance.choice(SIGNALS)
    for line in process.stdout:
        if line.startswith("step "):
            break
    until = time.monotonic() + chance.uniform(0, 0.6)
    while process.poll() is None and time.monotonic() < until + 5 * aimed:
        if aimed and any(folder.glob("checkpoints/.*.tmp-*")):  # a save has begun
            number = signal.SIGKILL
            break
        time.sleep(0.0002 if aimed else 0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (0, -9, 130, 138, 143), err
    return process.returncode != 0


@pytest.mark.slow
def test_storm_of_kills_changes_nothing(call, text, record_property):
    more = [
        "model.dropout=0.1",
        "trainer.max_steps=800",
        "trainer.val_check_interval=20",
        "callbacks.samples=null",
    ]
    settings = [*TINY[:-1], *more, "callbacks.attention=null", f"data.path={text}"]
    assert call(*settings, "hydra.run.dir=whole")[0] == 0
    chance, kills, folder = random.Random(0), 0, Path("outputs/parts")
    while life(
        begin(*settings, f"hydra.run.dir={folder}"), folder, chance
    ):  # the same command resumes the run
        kills += 1
        for name in ("best", "last"):  # at any moment there is either none or a whole one
            if (path := folder / f"checkpoints/{name}.safetensors").exists():
                read_checkpoint(path)
    record_property("kills", kills)
    print(f"{kills} kills")
    assert kills >= 30
    assert_same_run(folder, "whole")
    assert not list(folder.glob("checkpoints/.*.tmp-*"))
