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
from test_resume import begin, wait_for_step

from conftest import PRECISION, ROOT, TINY, history, read_result
from gpt.checkpoint import load
from gpt.cli.overrides import quote_override
from gpt.evaluate import evaluate

pytestmark = pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core, and two processes need two")
RUN = [*TINY, "callbacks.samples=null", "data.batch_size=4", "model.dropout=0", "trainer.max_steps=50"]
RUN += ["trainer.val_check_interval=20", "trainer.log_every_n_steps=1"]
RUN += ["optimizer.lr=3e-3"]  # at the default rate, so small a model grows differences in rounding
RUN += [
    "data.val_fraction=0.15"
]  # 80 windows: batches that one process has more of, and one that is not full
TWO = ["trainer.accelerator=cpu", "trainer.devices=2"]
METRICS = ("train/loss", "val/loss", "val/bits_per_char", "train/grad_norm", "lr")
# How far two processes may be from one: rounding, which in bfloat16 is 2**16 times as coarse
TOLERANCE = {"32-true": 1e-5, "bf16-mixed": 1e-2}


def together(*arguments: str, launcher: tuple[str, ...] = ()) -> str:
    """Run scripts/train.py in two processes; return what they print."""
    command = [sys.executable, *launcher, str(ROOT / "scripts" / "train.py"), *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")} | {
        "OMP_NUM_THREADS": "1"
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_close(run: str, other: str, precision: str = PRECISION) -> None:
    """Both have logged the same but for rounding, and the best checkpoint of each evaluates to its loss."""
    tolerance = TOLERANCE[precision]
    for row, expected in zip(history(run), history(other), strict=True):
        assert row["step"] == expected["step"]
        for name in METRICS:
            assert bool(row[name]) == bool(expected[name])
            if row[name]:
                relative = 10 * tolerance if "norm" in name else 0
                assert float(row[name]) == pytest.approx(
                    float(expected[name]), abs=tolerance, rel=relative
                ), name
    for folder in (run, other):
        assert evaluate(*load(folder))["val"]["loss"] == read_result(folder)["best_val_loss"]


def test_two_processes_train_as_one(call, text, precision):
    settings = [*RUN, f"data.path={text}", f"trainer.precision={precision}"]
    assert call(*settings, "hydra.run.dir=one")[0] == 0
    out = together(*settings, "trainer=ddp", *TWO, "hydra.run.dir=two")
    assert out.count("val loss") == 1  # one of them speaks
    assert_close("two", "one", precision)
    assert json.loads(Path("two/run.json").read_text())["machine"]["processes"] == 2
    two, one = (load(f"{run}/checkpoints/last.safetensors")[0].state_dict() for run in ("two", "one"))
    assert all(
        torch.allclose(two[name], tensor, atol=10 * TOLERANCE[precision]) for name, tensor in one.items()
    )
    assert not list(Path().glob("outputs/*"))


def test_signal_stops_both_processes_and_one_or_two_resume(call, text):
    settings = [*RUN, f"data.path={text}"]
    together(*settings, "trainer=ddp", *TWO, "hydra.run.dir=whole")
    process = begin(*settings, "trainer=ddp", *TWO, quote_override("hydra.run.dir", "it's/two parts"))
    wait_for_step(process, 20)
    process.send_signal(signal.SIGTERM)  # to the first alone
    out, err = process.communicate(timeout=100)
    assert process.returncode == 143, err
    (advice,) = re.findall(r"To continue: (.*)", out)
    shutil.copytree("it's/two parts", "alone")
    together(*shlex.split(advice)[2:])
    assert history("it's/two parts") == history("whole")  # to the last bit
    code, _, err = call("resume=alone", "trainer.devices=1", "trainer.strategy=auto")
    assert code == 0, err
    assert "note: processes 1 where the run began with 2: its last digits may differ" in err
    assert_close("alone", "whole")


def test_torchrun_resumes_the_run_of_one_process(call, text):
    settings = [*RUN, f"data.path={text}", "trainer.accumulate_grad_batches=2", "trainer.max_steps=20"]
    for run in ("one", "two"):
        assert call(*settings, f"hydra.run.dir={run}")[0] == 0
    assert call("resume=one", "trainer.max_steps=50")[0] == 0
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    together(
        "resume=two", "trainer.max_steps=50", "trainer.strategy=ddp", "trainer.devices=2", launcher=torchrun
    )
    assert_close("two", "one")


REFUSED = {
    "trainer=fsdp": "trainer = fsdp: no such file in conf/trainer/; choose one of auto, cpu, ddp, debug, gpu",
    "trainer.strategy=deepspeed": "trainer.strategy = deepspeed: should be 'auto' or 'ddp'",
    "trainer=ddp data.batch_size=3": "data.batch_size = 3: not divisible among 2 processes",
    "-m trainer=ddp seed=1,2": "trainer.devices = 2: a job of a sweep uses one device",
    "trainer=ddp trainer.devices=4096": "trainer.devices = 4096: more processes than",
}


@pytest.mark.parametrize("given", REFUSED)
def test_unsupported_distributed_settings_are_refused(given, call, text):
    typed = given.split()
    code, out, err = call(*typed[:1], *RUN, f"data.path={text}", *TWO, *typed[1:])
    assert code == 2
    assert REFUSED[given] in out + err
    assert err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_torchrun_needs_a_folder(call, text, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")  # as torchrun does
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call(*RUN, f"data.path={text}", "trainer=ddp", *TWO)
    assert code == 2
    assert "several processes need one folder; set hydra.run.dir=outputs/NAME" in err
