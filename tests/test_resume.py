"""Runs that are killed, stopped, or asked to go on."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from test_sweep import history
from test_train import no_compiler

from conftest import ROOT, TINY
from gpt.checkpoint import tensors_in
from gpt.checkpoint_io import AtomicCheckpointIO
from gpt.module import GPTModule
from gpt.runs.folder import Run
from gpt.settings import UserError

LONG = ["model.dropout=0.1", "trainer.max_steps=400", "trainer.val_check_interval=50", "trainer.log_every_n_steps=7"]


def begin(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            return


def test_interrupted_run_is_bit_identical(call, text):
    settings = [*TINY, *LONG, f"data.path={text}"]
    assert call(*settings, "hydra.run.dir=whole")[0] == 0
    process = begin(*settings, "hydra.run.dir=outputs/parts")
    ends = [(50, signal.SIGUSR1, 138), (100, signal.SIGTERM, 143), (150, signal.SIGINT, 130), (200, signal.SIGKILL, -9)]
    for step, number, code in ends:
        wait_for_step(process, step)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        if number != signal.SIGKILL:
            assert f"To continue: python {ROOT / 'scripts' / 'train.py'} resume=outputs/parts" in out
            assert err == ""
        process = begin("resume=outputs/parts" if step < 200 else "resume=last")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert history("outputs/parts") == history("whole")
    parts, whole = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("outputs/parts", "whole"))
    assert all(torch.equal(parts["state_dict"][key], tensor) for key, tensor in whole["state_dict"].items())
    parts, whole = (json.loads(Path(f"{run}/result.json").read_text()) for run in ("outputs/parts", "whole"))
    assert all(parts[key] == whole[key] for key in ("best_val_loss", "best_step", "final_val_loss", "step"))


VARIANTS = {
    "float32": ["trainer.precision=32-true"],
    "bfloat16": ["trainer.precision=bf16-mixed"],
    "averaged": ["callbacks=ema"],
    "accumulated": ["trainer.accumulate_grad_batches=2"],
    "compiled": ["trainer.compile=true"],
    "byte pairs": ["data.tokenizer=bpe", "data.bpe_vocab_size=260"],
}


@pytest.mark.parametrize("stop", [4, 5])  # a step with a validation, and one without
@pytest.mark.parametrize("variant", [pytest.param(v, marks=no_compiler if v == "compiled" else ()) for v in VARIANTS])
def test_resumed_run_is_bit_identical(variant, stop, call, text, monkeypatch):
    settings = [*TINY, *VARIANTS[variant], "model.dropout=0.1", "trainer.max_steps=8", "trainer.val_check_interval=2"]
    settings += [f"data.path={text}", "trainer.log_every_n_steps=1"]
    code, _, err = call(*settings, "hydra.run.dir=whole")
    assert code == 0, err

    def kill(self, *args) -> None:
        if self.trainer.global_step == stop - 1:
            signal.raise_signal(signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(GPTModule, "on_train_batch_start", kill)
        assert call(*settings, "hydra.run.dir=parts")[0] == 138
    assert torch.load("parts/checkpoints/last.ckpt", weights_only=True)["global_step"] == stop
    code, _, err = call("resume=parts")
    assert code == 0, err
    assert history("parts") == history("whole")
    for name in ("best", "last"):
        parts, whole = (torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True) for run in ("parts", "whole"))
        assert all(torch.equal(parts["state_dict"][key], tensor) for key, tensor in whole["state_dict"].items())
        for kept, expected in zip(tensors_in(parts["optimizer_states"]), tensors_in(whole["optimizer_states"]), strict=True):
            assert torch.equal(kept, expected)


def test_more_steps_continue_a_finished_run(call, trained):
    half = trained / "checkpoints" / ".last.ckpt.tmp-1"  # left by a process that was killed while it wrote
    half.touch()
    code, out, err = call(f"resume={trained}", "trainer.max_steps=6")
    assert code == 0, err
    assert "after 6 steps" in out
    assert not half.exists()
    assert [row["step"] for row in history(trained) if row["val/loss"]] == ["3", "5"]
    assert yaml.safe_load((trained / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    before = (trained / "result.json").read_bytes()
    assert call(f"resume={trained}")[0] == 0  # it has ended, and there is nothing to do
    assert (trained / "result.json").read_bytes() == before
    assert not list(Path("outputs").glob("*"))  # resuming makes no new folders


def test_more_steps_keep_the_validation_interval_that_was_decided(call, text):
    settings = [*TINY, f"data.path={text}", "trainer.val_check_interval=null", "callbacks.samples=null", "hydra.run.dir=run"]
    assert call(*settings, "trainer.max_steps=16")[0] == 0
    code, _, err = call(*settings, "trainer.max_steps=24")
    assert code == 0, err
    assert [row["step"] for row in history("run") if row["val/loss"]] == [str(step) for step in range(1, 24, 2)]


def test_early_stopping_after_a_kill_stops_at_the_same_step(call, text, monkeypatch):
    """The process dies after the checkpoint of the last validation, and before there is a result."""
    settings = [*TINY, f"data.path={text}", "callbacks=early_stopping", "callbacks.early_stopping.patience=1"]
    settings += ["optimizer=adamw", "optimizer.lr=1", "trainer.max_steps=50", "trainer.val_check_interval=2"]
    assert call(*settings, "hydra.run.dir=whole")[0] == 0
    whole = json.loads(Path("whole/result.json").read_text())
    assert whole["step"] < 50

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(*settings, "hydra.run.dir=parts")[0] == 130
    assert not Path("parts/result.json").exists()
    code, _, err = call("resume=parts")
    assert code == 0, err
    parts = json.loads(Path("parts/result.json").read_text())
    assert all(parts[key] == whole[key] for key in ("best_val_loss", "best_step", "final_val_loss", "step"))


def test_run_that_its_time_limit_ended_goes_on(call, text):
    settings = [*TINY, f"data.path={text}", "trainer.max_steps=10000", "trainer.max_time='00:00:00:01'", "hydra.run.dir=run"]
    assert call(*settings)[0] == 0
    steps = json.loads(Path("run/result.json").read_text())["step"]
    assert 0 < steps < 10_000
    code, _, err = call("resume=run", "trainer.max_time='00:00:00:02'")
    assert code == 0, err
    assert json.loads(Path("run/result.json").read_text())["step"] > steps


def test_moved_run_goes_on(call, trained):
    moved = trained.rename(trained.with_name("moved run"))
    score = json.loads((moved / "result.json").read_text())["best_val_loss"]
    code, _, err = call("resume='moved run'", "trainer.max_steps=5")
    assert code == 0, err
    assert json.loads((moved / "result.json").read_text())["best_val_loss"] <= score
    assert not trained.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["resume=RUN", "model.n_layer=1", "optimizer.lr=0.1"], "model.n_layer, optimizer.lr = 1, 0.1: the run in"),
        (["resume=RUN", "model=small"], "model = small: not with resume"),
        (["resume=RUN", "seed=3"], "seed = 3: not with resume"),
        (["resume=RUN", "trainer.max_steps=3"], "trainer.max_steps = 3: the run in RUN has taken 4 steps"),
        (["resume=nowhere"], "resume = nowhere: no run there"),
        (["resume=last"], "resume = last: no run under outputs/ that has not ended"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_override_that_makes_another_run_is_refused(given, said, call, trained):
    before = {path: path.read_bytes() for path in trained.rglob("*.*") if path.is_file()}
    code, _, err = call(*(word.replace("RUN", str(trained)) for word in given))
    assert code == 2
    assert err.startswith(f"error: {said.replace('RUN', str(trained))}")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in trained.rglob("*.*") if path.is_file()} == before


def test_another_text_is_refused_and_another_machine_is_noted(call, trained, text):
    run = json.loads((trained / "run.json").read_text())
    run["machine"]["threads"] += 1
    run["machine"]["device"] = "cuda:0"
    (trained / "run.json").write_text(json.dumps(run))
    code, _, err = call(f"resume={trained}", "trainer.max_steps=5")
    assert code == 0
    assert err.startswith("note: threads ")
    assert "\nnote: device cpu where the run began with cuda:0: its last digits may differ\n" in err
    text.write_text(text.read_text() + "more")
    code, _, err = call(f"resume={trained}", "trainer.max_steps=6")
    assert code == 2
    assert "not the text that the run" in err


def test_checkpoint_without_optimizer_state_is_refused(call, trained):
    last = trained / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["optimizer_states"]
    torch.save(content, last)
    code, _, err = call(f"resume={trained}", "trainer.max_steps=6")
    assert code == 2
    assert "weights alone, no optimizer state" in err
    assert err.count("\n") == 1


def test_second_process_is_refused_with_the_number_of_the_first(call, trained):
    with Run(trained):
        code, _, err = call(f"resume={trained}", "trainer.max_steps=5")
    assert code == 2
    assert f"process {os.getpid()} is at work there" in err
    assert call(f"resume={trained}", "trainer.max_steps=5")[0] == 0


@contextlib.contextmanager
def full_disk(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_the_old_checkpoint(tmp_path):
    path, files = tmp_path / "last.ckpt", AtomicCheckpointIO()
    files.save_checkpoint({"state_dict": {"a": torch.ones(1000)}}, path)
    before = path.read_bytes()
    with full_disk(10_000), pytest.raises(UserError, match="400,000 bytes needed and"):
        files.save_checkpoint({"state_dict": {"a": torch.ones(100_000)}}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_failed_rename_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, files = tmp_path / "last.ckpt", AtomicCheckpointIO()
    files.save_checkpoint({"state_dict": {}}, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(UserError, match=r"not written.*Input/output error"):
        files.save_checkpoint({"state_dict": {"a": torch.ones(10)}}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nan_in_one_batch_ends_the_run_before_it_is_saved(call, text, monkeypatch):
    loss = GPTModule.loss

    def broken(self, batch):
        return loss(self, batch) * (torch.nan if self.trainer.training and self.trainer.global_step == 5 else 1)

    monkeypatch.setattr(GPTModule, "loss", broken)
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=8", "trainer.val_check_interval=2", "hydra.run.dir=run")
    assert code == 2
    assert "train/grad_norm = nan: not finite at step 5" in err
    assert "its last good checkpoint is " in err
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_diverged_run_names_its_last_good_checkpoint(call, text):
    diverging = ["optimizer=adamw", "optimizer.lr=1e5", "scheduler.warmup_ratio=1", "trainer.gradient_clip_val=0"]
    diverging.append("trainer.val_check_interval=1")
    code, _, err = call(*TINY, *diverging, f"data.path={text}", "hydra.run.dir=run")
    assert code == 2
    assert "not finite at step" in err
    assert "(train/loss " in err
    assert "its last good checkpoint is " in err
    kept = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in kept.values())
