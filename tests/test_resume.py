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
from gpt.checkpoint import AtomicCheckpointIO, tensors_in
from gpt.module import GPTModule
from gpt.run import locked
from gpt.settings import UserError

LONG = ["model.dropout=0.1", "trainer.max_steps=400", "trainer.val_check_interval=50", "trainer.log_every_n_steps=7"]


def begin(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            return


def test_any_end_and_a_new_beginning_make_the_run_that_was_never_stopped(call, text):
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
            assert "all is saved; to go on: python scripts/train.py resume=outputs/parts" in out
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
    "bfloat16": ["trainer.precision=bf16-mixed"],
    "compiled": ["trainer.compile=true"],
    "byte pairs": ["data.tokenizer=bpe", "data.bpe_vocab_size=260"],
}


@pytest.mark.parametrize("stop", [4, 5])  # a step that is, and one that is not one of a validation
@pytest.mark.parametrize("variant", [pytest.param(v, marks=no_compiler if v == "compiled" else ()) for v in VARIANTS])
def test_whatever_is_trained_goes_on_to_the_last_bit(variant, stop, call, text, monkeypatch):
    settings = [*TINY, *VARIANTS[variant], "model.dropout=0.1", "trainer.max_steps=8", "trainer.val_check_interval=2"]
    settings += [f"data.path={text}", "trainer.log_every_n_steps=1"]
    assert call(*settings, "hydra.run.dir=whole")[0] == 0

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


def test_more_steps_go_on_from_the_end(call, trained):
    half = trained / "checkpoints" / ".last.ckpt.tmp-1"  # what a killed process was writing
    half.touch()
    code, out, err = call(f"resume={trained}", "trainer.max_steps=6")
    assert code == 0, err
    assert "after 6 steps" in out
    assert not half.exists()
    assert [row["step"] for row in history(trained) if row["val/loss"]] == ["3", "5"]
    assert yaml.safe_load((trained / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    before = (trained / "result.json").read_bytes()
    assert call(f"resume={trained}")[0] == 0  # ended: nothing to do
    assert (trained / "result.json").read_bytes() == before
    assert not list(Path("outputs").glob("*"))  # no folders of their own


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["resume=RUN", "model.n_layer=1", "optimizer.lr=0.1"], "model.n_layer, optimizer.lr = 1, 0.1: the run in"),
        (["resume=RUN", "model=small"], "model = small: not with resume"),
        (["resume=RUN", "seed=3"], "seed = 3: not with resume"),
        (["resume=RUN", "trainer.max_steps=3"], "trainer.max_steps = 3: the run in RUN has had 4"),
        (["resume=nowhere"], "resume = nowhere: no run there"),
        (["resume=last"], "resume = last: no run under outputs/ that has not ended"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_would_make_another_run_is_refused(given, said, call, trained):
    before = {path: path.read_bytes() for path in trained.rglob("*.*") if path.is_file()}
    code, _, err = call(*(word.replace("RUN", str(trained)) for word in given))
    assert code == 2
    assert err.startswith(f"error: {said.replace('RUN', str(trained))}")
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in trained.rglob("*.*") if path.is_file()} == before


def test_another_text_is_refused_and_another_machine_is_named(call, trained, text):
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


def test_weights_alone_are_refused(call, trained):
    last = trained / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["optimizer_states"]
    torch.save(content, last)
    code, _, err = call(f"resume={trained}", "trainer.max_steps=6")
    assert code == 2
    assert "weights alone, no optimizer state" in err
    assert err.count("\n") == 1


def test_a_second_process_is_refused_by_number(call, trained):
    with locked(trained):
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


def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_is_needed(tmp_path):
    path, files = tmp_path / "last.ckpt", AtomicCheckpointIO()
    files.save_checkpoint({"state_dict": {"a": torch.ones(1000)}}, path)
    before = path.read_bytes()
    with full_disk(10_000), pytest.raises(UserError, match="400,000 bytes needed and"):
        files.save_checkpoint({"state_dict": {"a": torch.ones(100_000)}}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, files = tmp_path / "last.ckpt", AtomicCheckpointIO()
    files.save_checkpoint({"state_dict": {}}, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(UserError, match=r"not written.*Input/output error"):
        files.save_checkpoint({"state_dict": {"a": torch.ones(10)}}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_nan_in_one_batch_ends_the_run_before_it_is_saved(call, text, monkeypatch):
    loss = GPTModule.loss

    def broken(self, batch):
        return loss(self, batch) * (torch.nan if self.trainer.training and self.trainer.global_step == 5 else 1)

    monkeypatch.setattr(GPTModule, "loss", broken)
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=8", "trainer.val_check_interval=2", "hydra.run.dir=run")
    assert code == 2
    assert "train/grad_norm = nan: not finite at step 5" in err
    assert "its last good checkpoint is " in err
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


def test_the_last_good_checkpoint_is_named_where_a_run_diverges(call, text):
    diverging = ["optimizer=adamw", "optimizer.lr=1e5", "scheduler.warmup_ratio=1", "trainer.gradient_clip_val=0"]
    diverging.append("trainer.val_check_interval=1")
    code, _, err = call(*TINY, *diverging, f"data.path={text}", "hydra.run.dir=run")
    assert code == 2
    assert "not finite at step" in err
    assert "(train/loss " in err
    assert "its last good checkpoint is " in err
    kept = torch.load("run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in kept.values())
