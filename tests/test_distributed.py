"""Two real processes on this machine's CPU, which talk through gloo, train as one."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_resume import wait_for_step

from conftest import ROOT, TINY, history, read_result, start, write_play
from gpt.checkpoint import load
from gpt.evaluate import evaluate

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core, and two processes need two")
SETTINGS = ["callbacks.samples=null", "data.batch_size=4", "model.dropout=0", "trainer.max_steps=50"]
SETTINGS += ["trainer.val_check_interval=20", "trainer.log_every_n_steps=1"]
SETTINGS += ["optimizer.lr=3e-3"]  # at the default rate, so small a model grows differences in rounding
# 80 windows: batches that one process has more of, and one that is not full
SETTINGS += ["data.val_fraction=0.15"]
TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
# How far two processes may be from one: rounding, which in bfloat16 is 2**16 times as coarse
TOLERANCE = {"32-true": 1e-5, "bf16-mixed": 1e-2}


def together(*arguments: str, launcher: tuple[str, ...] = (), cwd: Path | None = None) -> str:
    """Run scripts/train.py in two processes; return what they print."""
    command = [sys.executable, *launcher, str(ROOT / "scripts" / "train.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_close(run: str | Path, other: str | Path, precision: str = "32-true") -> None:
    """Both have logged the same but for rounding, and the best checkpoint of each evaluates to its loss."""
    tolerance = TOLERANCE[precision]
    for row, expected in zip(history(run), history(other), strict=True):
        for name in expected:
            assert bool(row[name]) == bool(expected[name])
            if row[name]:
                relative = 10 * tolerance if "norm" in name else 0
                near = pytest.approx(float(expected[name]), abs=tolerance, rel=relative)
                assert float(row[name]) == near, name
    for folder in (run, other):
        assert evaluate(*load(folder))["val"]["loss"] == read_result(folder)["best_val_loss"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, list[str]]:
    """The folder of a run that two processes have trained, and its settings."""
    folder = tmp_path_factory.mktemp("two")
    settings = [*TINY, *SETTINGS, f"data.path={write_play(folder / 'text.txt')}", "trainer.precision=32-true"]
    out = together(*settings, *TWO, "hydra.run.dir=whole", cwd=folder)
    assert out.count("val loss") == 1  # one of them speaks
    assert {path.name for path in folder.iterdir()} == {"text.txt", "whole"}
    return folder / "whole", settings


def test_two_processes_train_as_one(whole, call):
    run, settings = whole
    code, out, err = call(*settings, "hydra.run.dir=one")
    assert code == 0, out + err
    assert_close(run, "one")
    assert json.loads((run / "run.json").read_text())["machine"]["processes"] == 2
    two, one = (load(Path(place, "checkpoints/last.safetensors"))[0].state_dict() for place in (run, "one"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-4, rtol=1e-5)


def test_signal_stops_both_processes_and_one_or_two_resume(whole, call):
    """So does the death of one of them, of which the other says one line."""
    run, settings = whole
    command = [*settings, *TWO, "hydra.run.dir=it's/two parts"]
    process = start("train.py", *command)
    wait_for_step(process, 20)
    (second,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(second), signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert re.search(r"^error: processes = 2: another one has ended; repeat the command .*\n$", err), err
    assert "Traceback" not in err
    process = start("train.py", *command)
    wait_for_step(process, 20)
    process.send_signal(signal.SIGTERM)  # to the first alone
    out, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    (advice,) = re.findall(r"To continue: (.*)", out)
    shutil.copytree("it's/two parts", "alone")
    together(*shlex.split(advice)[2:])
    assert history("it's/two parts") == history(run)  # to the last bit
    code, _, err = call("resume=alone", "trainer.devices=1", "trainer.strategy=auto")
    assert code == 0, err
    assert "note: processes 1 where the run began with 2: its last digits may differ" in err
    assert_close("alone", run)


def test_torchrun_resumes_the_run_of_one_process(succeed):
    """In bfloat16, with accumulated gradients."""
    settings = [*SETTINGS, "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed"]
    succeed(*settings, "trainer.max_steps=20", "hydra.run.dir=one")
    shutil.copytree("one", "two")
    succeed("resume=one", "trainer.max_steps=50")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    more = ["trainer.max_steps=50", "trainer.strategy=ddp", "trainer.devices=2"]
    together("resume=two", *more, launcher=torchrun)
    assert_close("two", "one", "bf16-mixed")


def test_unsupported_distributed_settings_are_refused(refuse, monkeypatch):
    assert "not divisible among 2 processes" in refuse(*SETTINGS, *TWO, "data.batch_size=3")
    assert "a job of a sweep uses one device" in refuse("-m", *SETTINGS, *TWO, "seed=1,2")
    assert list(Path().iterdir()) == []
    monkeypatch.setenv("LOCAL_RANK", "0")  # as torchrun does
    monkeypatch.setenv("WORLD_SIZE", "2")
    advice = "several processes need one folder; set hydra.run.dir=outputs/NAME"
    assert advice in refuse(*SETTINGS, *TWO)
