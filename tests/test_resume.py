"""Runs that are killed, stopped, or continued."""

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
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_train import no_compiler

from conftest import ARCHITECTURES, ROOT, TINY, assert_same_run, history, read_checkpoint, read_result
from gpt.callbacks import StepSeed
from gpt.checkpoint import write
from gpt.errors import UserError
from gpt.module import GPTModule
from gpt.run import Run

LONG = [
    "model.dropout=0.1",
    "trainer.max_steps=400",
    "trainer.val_check_interval=50",
    "trainer.log_every_n_steps=7",
]


def begin(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts/train.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            return


def test_interrupted_run_is_bit_identical(succeed, text):
    succeed(*LONG, "hydra.run.dir=whole")
    process = begin(*TINY, *LONG, f"data.path={text}", "hydra.run.dir=outputs/parts")
    ends = [
        (50, signal.SIGUSR1, 138),
        (100, signal.SIGTERM, 143),
        (150, signal.SIGINT, 130),
        (200, signal.SIGKILL, -9),
    ]
    for step, number, code in ends:
        wait_for_step(process, step)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        if number != signal.SIGKILL:
            assert f"To continue: python {ROOT / 'scripts/train.py'} resume=outputs/parts" in out
            assert err == ""
        process = begin("resume=outputs/parts" if step < 200 else "resume=last")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert_same_run("outputs/parts", "whole")


VARIANTS = {
    "float32": ["trainer.precision=32-true"],
    "bfloat16": ["trainer.precision=bf16-mixed"],
    "averaged": ["callbacks=ema", "callbacks.ema.decay=0.5"],
    "accumulated": ["trainer.accumulate_grad_batches=2"],
    "compiled": ["trainer.compile=true"],
    "bytes": ["data.tokenizer=byte", "optimizer=adamw"],
    "byte pairs": ["data.tokenizer=bpe", "data.bpe_vocab_size=260"],
}
VARIANTS |= {arch: [f"model/arch={arch}"] for arch in ARCHITECTURES if arch not in ("modern", "rmsnorm")}
VARIANTS["rmsnorm"] = ["ablation=rmsnorm"]


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(folder)
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("perf")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=no_compiler if v == "compiled" else ()) for v in VARIANTS]
)
def test_run_that_is_stopped_and_crashes_is_bit_identical(variant, succeed, call, monkeypatch):
    """It is stopped after a step with a validation, crashes, and is stopped after a step without one."""
    steps = ["trainer.max_steps=12", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1"]
    succeed(*VARIANTS[variant], "model.dropout=0.1", *steps, "hydra.run.dir=whole")
    seed_batch, ends = StepSeed.on_train_batch_start, [(3, 138), (7, 1), (8, 138)]

    def end(self, trainer, *args) -> None:
        seed_batch(self, trainer, *args)
        if trainer.global_step == ends[0][0]:
            if ends[0][1] == 1:
                raise RuntimeError("the plug was pulled")
            signal.raise_signal(signal.SIGUSR1)

    with monkeypatch.context() as patch:
        patch.setattr(StepSeed, "on_train_batch_start", end)
        for kept in (3, 6, 8):
            with contextlib.suppress(AssertionError):
                succeed(*VARIANTS[variant], "model.dropout=0.1", *steps, "hydra.run.dir=parts")
            assert read_checkpoint(Path("parts/checkpoints/last.safetensors"))["global_step"] == kept
            assert not Path("parts/result.json").exists()
            ends.append(ends.pop(0))
    code, _, err = call("resume=parts")
    assert code == 0, err
    assert_same_run("parts", "whole")
    for shown in ("", "/train", "/best"):
        assert scalars(f"parts{shown}") == scalars(f"whole{shown}")


def test_run_whose_last_checkpoint_is_missing_begins_again(succeed, trained):
    (trained / "checkpoints/last.safetensors").unlink()
    (trained / "result.json").rename("expected.json")
    loss = json.loads(Path("expected.json").read_text())["final_val_loss"]
    succeed("data.path=../text.txt", "trainer.max_steps=4", "hydra.run.dir=run")
    assert (read_result(trained)["final_val_loss"], len(history(trained))) == (loss, 1)


def test_more_steps_continue_a_finished_run(call, trained):
    half = trained / "checkpoints" / ".last.safetensors.tmp-1"  # of a process that was killed while it wrote
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


def test_more_steps_keep_the_validation_interval_that_was_decided(succeed):
    settings = ["trainer.val_check_interval=null", "callbacks.samples=null", "hydra.run.dir=run"]
    succeed(*settings, "trainer.max_steps=16")
    succeed(*settings, "trainer.max_steps=24")
    assert [row["step"] for row in history("run") if row["val/loss"]] == [
        str(step) for step in range(1, 24, 2)
    ]


def test_early_stopping_after_a_kill_stops_at_the_same_step(succeed, call, text, monkeypatch):
    """The process dies after the checkpoint of the last validation, and before there is a result."""
    settings = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer=adamw"]
    settings += ["optimizer.lr=1", "trainer.max_steps=50", "trainer.val_check_interval=2"]
    succeed(*settings, "hydra.run.dir=whole")
    assert read_result("whole")["step"] < 50
    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        assert call(*TINY, *settings, f"data.path={text}", "hydra.run.dir=parts")[0] == 130
    assert not Path("parts/result.json").exists()
    code, _, err = call("resume=parts")
    assert code == 0, err
    assert_same_run("parts", "whole")


def test_run_that_its_time_limit_ended_continues(succeed, call):
    succeed("trainer.max_steps=10000", "trainer.max_time='00:00:00:01'", "hydra.run.dir=run")
    steps = read_result("run")["step"]
    assert 0 < steps < 10_000
    code, _, err = call("resume=run", "trainer.max_time='00:00:00:02'")
    assert code == 0, err
    assert read_result("run")["step"] > steps


def test_moved_run_continues(call, trained):
    moved = trained.rename(trained.with_name("moved run"))
    score = read_result(moved)["best_val_loss"]
    code, _, err = call("resume='moved run'", "trainer.max_steps=5")
    assert code == 0, err
    assert read_result(moved)["best_val_loss"] <= score
    assert not trained.exists()


REFUSED = [
    (
        ["resume=RUN", "model.n_layer=1", "optimizer.lr=0.1"],
        "model.n_layer, optimizer.lr = 1, 0.1: the run in",
    ),
    (["resume=RUN", "model=small"], "model = small: not with resume"),
    (["resume=RUN", "seed=3"], "seed = 3: not with resume"),
    (["resume=RUN", "trainer.max_steps=3"], "trainer.max_steps = 3: the run in RUN has taken 4 steps"),
    (["resume=RUN", "hydra.run.dir=other"], "resume = RUN: it continues in the run's own folder"),
    (["resume=nowhere"], "resume = nowhere: no run there"),
    (["resume=last"], "resume = last: no run under outputs/ that has not ended"),
]


def files_of(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*.*") if path.is_file()}


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=[" ".join(given) for given, _ in REFUSED])
def test_override_that_makes_another_run_is_refused(given, said, call, trained):
    before = files_of(trained)
    code, _, err = call(*(word.replace("RUN", str(trained)) for word in given))
    assert code == 2
    assert err.startswith(f"error: {said.replace('RUN', str(trained))}"[:70])
    assert err.count("\n") == 1
    assert files_of(trained) == before


def edit_config(run: Path, change) -> None:
    values = yaml.safe_load((run / "config.yaml").read_text())
    change(values)
    (run / "config.yaml").write_text(yaml.safe_dump(values))


STRANGE = {
    "callbacks.samples": lambda values: values["callbacks"]["samples"].update(_target_="os.system"),
    "callbacks.best": lambda values: values["callbacks"]["best"].update(inner=[{"_target_": "os.system"}]),
    "logger.csv": lambda values: values["logger"]["csv"].update(x={"y": {"_target_": "os.system"}}),
}


@pytest.mark.parametrize("name", STRANGE)
def test_stored_class_of_strangers_is_refused(call, trained, name):
    edit_config(trained, STRANGE[name])
    before = files_of(trained)
    code, _, err = call(f"resume={trained}", "trainer.max_steps=6")
    assert code == 2
    assert err.startswith(f"error: {name} = os.system: neither of this project nor of Lightning; if you")
    assert files_of(trained) == before


def test_another_text_is_refused_and_another_machine_is_noted(call, trained, text):
    run = json.loads((trained / "run.json").read_text())
    run["machine"] |= {"threads": run["machine"]["threads"] + 1, "device": "cuda:0"}
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
    last = trained / "checkpoints/last.safetensors"
    content = read_checkpoint(last)
    del content["optimizer_states"]
    write(last, content)
    code, _, err = call(f"resume={trained}", "trainer.max_steps=6")
    assert code == 2
    assert "weights alone, no optimizer state" in err
    assert err.count("\n") == 1


def test_second_process_is_refused_with_the_number_of_the_first(call, trained):
    with Run(trained) as first:
        first.begin(first.config, {})
        before = files_of(trained)
        code, _, err = call(f"resume={trained}", "trainer.max_steps=5")
        assert files_of(trained).items() >= before.items()
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


@pytest.mark.parametrize("what", ["full disk", "failed rename"])
def test_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, what):
    path = tmp_path / "last.safetensors"
    write(path, {"gpt": {}, "state_dict": {"a": torch.ones(1000)}})
    before = path.read_bytes()
    with contextlib.ExitStack() as stack:
        if what == "full disk":
            stack.enter_context(full_disk(10_000))
        else:
            broken = lambda *args: (_ for _ in ()).throw(OSError(5, "Input/output error"))  # noqa: E731
            monkeypatch.setattr(os, "replace", broken)
        with pytest.raises(UserError, match=r"not written, (File too large|Input/output error)"):
            write(path, {"gpt": {}, "state_dict": {"a": torch.ones(100_000)}})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_nan_in_one_batch_ends_the_run_before_it_is_saved(call, text, monkeypatch):
    loss = GPTModule.loss

    def broken(self, batch):
        is_broken = self.trainer.training and self.trainer.global_step == 5
        return loss(self, batch) * (torch.nan if is_broken else 1)

    monkeypatch.setattr(GPTModule, "loss", broken)
    steps = ["trainer.max_steps=8", "trainer.val_check_interval=2", "hydra.run.dir=run"]
    code, _, err = call(*TINY, f"data.path={text}", *steps)
    assert code == 2
    assert "train/grad_norm = nan: not finite at step 5" in err
    assert "its last good checkpoint is " in err
    assert read_checkpoint(Path("run/checkpoints/last.safetensors"))["global_step"] == 4


def test_diverged_run_names_its_last_good_checkpoint(call, text):
    diverging = ["optimizer=adamw", "optimizer.lr=1e5", "scheduler.warmup_ratio=1"]
    diverging += ["trainer.gradient_clip_val=0", "trainer.val_check_interval=1"]
    code, _, err = call(*TINY, *diverging, f"data.path={text}", "hydra.run.dir=run")
    assert code == 2
    assert "not finite at step" in err
    assert "(train/loss " in err
    assert "its last good checkpoint is " in err
    assert err.count("\n") == 1
    assert not Path("run/result.json").exists()
    kept = read_checkpoint(Path("run/checkpoints/last.safetensors"))["state_dict"]
    assert all(tensor.isfinite().all() for tensor in kept.values())
