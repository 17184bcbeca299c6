"""One run is killed again and again at any moment, also in the middle of a save. It takes some minutes: `make test-slow`."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from test_resume import begin
from test_sweep import history

from conftest import TINY
from gpt.checkpoint import tensors_in

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
    more = ["model.dropout=0.1", "trainer.max_steps=800", "trainer.val_check_interval=20", "callbacks.samples=null"]
    settings = [*TINY[:-1], *more, "callbacks.attention=null", f"data.path={text}"]
    assert call(*settings, "hydra.run.dir=whole")[0] == 0
    chance, kills, folder = random.Random(0), 0, Path("outputs/parts")
    while life(begin(*settings, f"hydra.run.dir={folder}"), folder, chance):  # the same command resumes the run
        kills += 1
        for name in ("best", "last"):  # at any moment there is either none or a whole one
            if (path := folder / "checkpoints" / f"{name}.ckpt").exists():
                torch.load(path, weights_only=True)
    record_property("kills", kills)
    print(f"{kills} kills")
    assert kills >= 30
    assert history(folder) == history("whole")
    for name in ("best", "last"):
        parts, whole = (torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True) for run in (folder, "whole"))
        assert all(torch.equal(parts["state_dict"][key], tensor) for key, tensor in whole["state_dict"].items())
        for kept, expected in zip(tensors_in(parts["optimizer_states"]), tensors_in(whole["optimizer_states"]), strict=True):
            assert torch.equal(kept, expected)
    parts, whole = (json.loads(Path(f"{run}/result.json").read_text()) for run in (folder, "whole"))
    assert all(parts[key] == whole[key] for key in ("best_val_loss", "best_step", "final_val_loss", "step"))
    assert not list(folder.glob("checkpoints/.*.tmp-*"))
