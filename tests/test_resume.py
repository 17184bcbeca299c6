"""Runs that are killed, stopped, or continued; one of them again and again, in `make test-slow`."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from test_finetune_tasks import play
from test_train import no_compiler

from conftest import (
    ARCHITECTURES,
    EXACT,
    ROOT,
    TINY,
    assert_same_run,
    history,
    read_checkpoint,
    read_events,
    read_last,
    read_result,
    run_program,
    same,
    start,
)
from gpt.callbacks import StepSeed
from gpt.checkpoint import load, write
from gpt.config import RunConfig
from gpt.finetune.tasks import TASKS
from gpt.module import GPTModule
from gpt.resume import resolve, validation_interval
from gpt.run import FolderInUse, Run


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    for line in process.stdout:
        if line.startswith("step ") and int(line.split()[1]) >= step:
            return


def test_interrupted_run_is_bit_identical(succeed, text):
    long = ["model.dropout=0.1", "trainer.max_steps=300", "trainer.val_check_interval=50"]
    long += ["trainer.log_every_n_steps=7"]
    succeed(*long, "hydra.run.dir=whole")
    process = start("train.py", *TINY, *long, f"data.path={text}", "hydra.run.dir=outputs/parts")
    for step, number, code in [(50, signal.SIGINT, 130), (150, signal.SIGKILL, -9)]:
        wait_for_step(process, step)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == code, err
        if number == signal.SIGINT:
            assert f"To continue: python {ROOT / 'scripts/train.py'} resume=outputs/parts" in out
            assert err == ""
            process = start("train.py", "resume=outputs/parts")
    succeed("resume=last")
    assert_same_run("outputs/parts", "whole")


VARIANTS = {  # every architecture, precision, tokenizer, and all that training keeps besides weights
    "modern": ["trainer.precision=32-true"],
    "gpt1, bytes": ["model/arch=gpt1", "data.tokenizer=byte", "optimizer=adamw"],
    "gpt2, byte pairs": ["model/arch=gpt2", "data.tokenizer=bpe", "data.bpe_vocab_size=260"],
    "rmsnorm, bfloat16": ["ablation=rmsnorm", "trainer.precision=bf16-mixed"],
    "averaged": ["callbacks=ema", "callbacks.ema.decay=0.5", "trainer.accumulate_grad_batches=2"],
    "compiled": ["trainer.compile=true"],
}
for name in {*ARCHITECTURES} - {variant.partition(",")[0] for variant in VARIANTS}:
    VARIANTS[name] = [f"model/arch={name}"]
CASES = [pytest.param(name, marks=no_compiler if name == "compiled" else ()) for name in VARIANTS]
# After a step with a validation, not at the end of a step at all, and after a step without a validation:
# where training is ended, how (None for a second Ctrl-C), the exit code, and the last step that was saved
ENDS = [(3, signal.SIGUSR1, 138, 3), (7, None, 130, 6), (8, signal.SIGTERM, 143, 8)]


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    events = read_events(folder)
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("perf")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("variant", CASES)
def test_run_that_is_stopped_and_crashes_is_bit_identical(variant, succeed, small, monkeypatch):
    settings = [*VARIANTS[variant], "model.dropout=0.1", "trainer.max_steps=12"]
    settings += ["trainer.val_check_interval=3", "trainer.log_every_n_steps=1"]
    succeed(*settings, "hydra.run.dir=whole")
    seed_batch, remaining = StepSeed.on_train_batch_start, list(ENDS)

    def end(self, trainer, *args) -> None:
        seed_batch(self, trainer, *args)
        step, number, *_ = remaining[0]
        if trainer.global_step == step:
            if number is None:
                raise KeyboardInterrupt
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(StepSeed, "on_train_batch_start", end)
        while remaining:
            _, _, code, saved = remaining[0]
            assert small(*settings, "hydra.run.dir=parts")[0] == code
            assert read_last("parts")["global_step"] == saved
            assert not Path("parts/result.json").exists()
            del remaining[0]
    succeed("resume=parts")
    assert_same_run("parts", "whole")
    for shown in ("", "/train", "/best"):
        assert scalars(f"parts{shown}") == scalars(f"whole{shown}")


def test_run_whose_last_checkpoint_is_missing_begins_again(succeed, trained):
    (trained / "checkpoints/last.safetensors").unlink()
    result, before = trained / "result.json", read_result(trained)
    result.unlink()
    same = ["data.path=../text.txt", "trainer.max_steps=4", "hydra.run.dir=run"]
    succeed(*same)
    assert [read_result(trained)[key] for key in EXACT] == [before[key] for key in EXACT]
    assert len(history(trained)) == 1
    written = result.read_bytes()
    succeed(*same)  # once more: it has ended, and there is nothing to do
    assert result.read_bytes() == written


def test_more_steps_continue_a_finished_run_that_was_moved(succeed, trained):
    moved = trained.rename(trained.with_name("moved run"))
    half = moved / "checkpoints" / ".last.safetensors.tmp-1"  # of a process that was killed while it wrote
    half.touch()
    score = read_result(moved)["best_val_loss"]
    assert "after 6 steps" in succeed("resume='moved run'", "trainer.max_steps=6")
    assert not half.exists()
    assert read_result(moved)["best_val_loss"] <= score
    assert [row["step"] for row in history(moved) if row["val/loss"]] == ["3", "5"]
    assert yaml.safe_load((moved / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    assert not trained.exists()
    assert not list(Path("outputs").glob("*"))  # resuming makes no new folders


def test_more_steps_keep_the_validation_interval_that_was_decided(succeed):
    settings = ["trainer.val_check_interval=null", "callbacks.samples=null", "hydra.run.dir=run"]
    for steps in (16, 24):
        succeed(*settings, f"trainer.max_steps={steps}")
    assert [int(row["step"]) for row in history("run") if row["val/loss"]] == list(range(1, 24, 2))


def test_early_stopping_after_a_kill_stops_at_the_same_step(succeed, small, monkeypatch):
    """The process dies after the checkpoint of the last validation, and before there is a result."""
    settings = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer=adamw"]
    settings += ["optimizer.lr=1", "trainer.max_steps=50", "trainer.val_check_interval=2"]
    succeed(*settings, "hydra.run.dir=whole")
    result = read_result("whole")
    assert result["best_step"] < result["step"] < 50
    steps = [load(f"whole/checkpoints/{name}.safetensors")[2]["step"] for name in ("best", "last")]
    assert steps == [result["best_step"], result["step"]]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        assert small(*settings, "hydra.run.dir=parts")[0] == 130
    assert not Path("parts/result.json").exists()
    succeed("resume=parts")
    assert_same_run("parts", "whole")


def test_run_that_its_time_limit_ended_continues(succeed):
    succeed("trainer.max_steps=10000", "trainer.max_time='00:00:00:01'", "hydra.run.dir=run")
    steps = read_result("run")["step"]
    assert 0 < steps < 10_000
    succeed("resume=run", "trainer.max_time='00:00:00:02'")
    assert read_result("run")["step"] > steps


REFUSED = {
    "resume=RUN model.n_layer=1 optimizer.lr=0.1": "model.n_layer, optimizer.lr = 1, 0.1: the run in RUN has",
    "resume=RUN model=small": "model = small: not with resume",
    "resume=RUN trainer.max_steps=3": "trainer.max_steps = 3: the run in RUN has taken 4 steps",
    "resume=RUN hydra.run.dir=other": "resume = RUN: it continues in the run's own folder",
    "resume=nowhere": "resume = nowhere: no run there",
    "resume=last": "resume = last: no unfinished run under outputs/",
    "resume=RUN callbacks.best=null": "callbacks.best._target_ = None: the run in RUN has gpt.callbacks.Best",
    "resume=RUN callbacks.last.every=2": "callbacks.last.every = 2: the run in RUN has None",
}


@pytest.mark.parametrize("given", REFUSED)
def test_override_that_makes_another_run_is_refused(given, refuse, trained):
    said = REFUSED[given].replace("RUN", str(trained))
    err = refuse(*given.replace("RUN", str(trained)).split())
    assert err.startswith(f"error: {said}"[:70])
    advises_init = f"leave it out, or begin a new run from its weights: init={trained}\n" in err
    assert advises_init is ("the run in RUN has" in REFUSED[given] and "taken" not in said)


def test_lines_that_were_deleted_from_config_yaml_are_noticed(refuse, trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    del config["callbacks"]["best"], config["optimizer"]["lr"]
    config["optimizer"]["muon_lr"] = 0.5
    (trained / "config.yaml").write_text(yaml.safe_dump(config))
    err = refuse("resume=run", "trainer.max_steps=5")
    assert err.startswith("error: optimizer.muon_lr, callbacks.best._target_ = 0.5, None: the run in ")


def test_early_stopping_and_loggers_may_be_added(succeed, refuse, trained):
    more = ["+logger.more._target_=lightning.pytorch.loggers.CSVLogger", "+logger.more.save_dir=null"]
    stopping = ["callbacks=early_stopping", "callbacks.early_stopping.patience=3"]
    succeed("resume=run/checkpoints/last.safetensors", "trainer.max_steps=5", *stopping, *more)
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["callbacks"]["early_stopping"]["patience"] == 3
    assert config["callbacks"]["samples"]["tokens"] == 20  # as it was
    (hparams,) = trained.glob("lightning_logs/*/hparams.yaml")
    assert "model.n_embd: 16\n" in hparams.read_text()
    err = refuse("resume=run", "callbacks=early_stopping", "callbacks.early_stopping.patience=4")
    assert err.startswith("error: callbacks.early_stopping.patience = 4: the run in ")


def test_steps_and_validations_by_default():
    intervals = {1: 1, 8: 1, 20: 4, 57: 10, 300: 50, 2000: 250}
    assert {steps: validation_interval(steps) for steps in intervals} == intervals
    data = SimpleNamespace(tokenizer=range(7), unit="characters", max_steps=40)
    config, reasons = resolve(RunConfig(trainer={"max_steps": 60}), None, data)
    assert (config.trainer.max_steps, config.trainer.val_check_interval) == (40, 5)
    assert "40 steps: the epochs that are set end before trainer.max_steps = 60" in reasons


def test_another_text_is_refused_and_another_machine_is_noted(call, refuse, trained, text):
    run = json.loads((trained / "run.json").read_text())
    run["machine"] |= {"threads": run["machine"]["threads"] + 1, "device": "cuda:0"}
    (trained / "run.json").write_text(json.dumps(run))
    code, _, err = call("resume=run", "trainer.max_steps=5")
    assert code == 0
    assert err.startswith("note: threads ")
    assert "\nnote: device cpu where the run began with cuda:0: its last digits may differ\n" in err
    text.write_text(text.read_text() + "more")
    assert "not the text that the run" in refuse("resume=run", "trainer.max_steps=6")


def test_checkpoint_without_optimizer_state_is_refused(refuse, trained):
    content = read_last(trained)
    del content["optimizer_states"]
    write(trained / "checkpoints/last.safetensors", content)
    assert "weights alone, no optimizer state" in refuse("resume=run", "trainer.max_steps=6")


def test_second_process_is_refused_with_the_number_of_the_first(succeed, refuse, trained):
    with Run(trained) as first:
        first.begin(first.config, {})
        err = refuse("resume=run", "trainer.max_steps=5")
    assert f"process {os.getpid()} is at work there" in err
    succeed("resume=run", "trainer.max_steps=5")


def test_process_that_read_the_folder_before_another_trained_there_is_refused(trained):
    late = Run(trained)
    with Run(trained) as other:
        other.begin(other.config, {})
    with pytest.raises(FolderInUse, match="has worked there meanwhile; run the command again"):
        late.begin(late.config, {})
    (trained / ".lock.pid").unlink()
    with Run(trained) as other:
        other.lock.acquire()
        with pytest.raises(FolderInUse, match=r"process \(unknown\) is at work there"):
            Run(trained).begin(late.config, {})


def test_nan_in_one_batch_ends_the_run_before_it_is_saved(refuse, monkeypatch):
    loss = GPTModule.loss

    def broken(self, batch):
        is_broken = self.trainer.training and self.trainer.global_step == 5
        return loss(self, batch) * (float("nan") if is_broken else 1)

    monkeypatch.setattr(GPTModule, "loss", broken)
    err = refuse("trainer.max_steps=8", "trainer.val_check_interval=2", "hydra.run.dir=run", may_write=True)
    assert "train/grad_norm = nan: not finite at step 5 (train/loss nan" in err
    assert "its last good checkpoint is " in err
    assert not Path("run/result.json").exists()
    last = read_last("run")
    assert last["global_step"] == 4
    assert all(tensor.isfinite().all() for tensor in last["state_dict"].values())


# The storm: every scenario is run once as a whole, and once more while it is killed again and again

SMALLEST = [*TINY[:4], TINY[5], "model.dropout=0.1"]
STEPS = ["trainer.max_steps=600", "trainer.val_check_interval=100", "trainer.log_every_n_steps=7"]
RUN = ["train", *STEPS, "callbacks.attention=null", "callbacks.samples.tokens=20", "data.path=play.txt"]
TASK = ["finetune", "trainer.max_steps=300", "trainer.val_check_interval=50", "finetune.epochs=1000"]
TASK += ["data.path=play.txt", "data.batch_size=8", "task.max_length=64"]
STORM = {  # a script and its arguments
    "long": [*RUN, "trainer.max_steps=4000"],
    "many validations": [*RUN, "data.val_fraction=0.7", "trainer.val_check_interval=20"],
    "gpt1": [*RUN, "model/arch=gpt1"],
    "gpt2": [*RUN, "model/arch=gpt2"],
    "byte pairs": [*RUN, "data.tokenizer=bpe", "data.bpe_vocab_size=260"],
    "first weights": [*RUN, "init=source"],
    "averaged": [*RUN, "callbacks=ema", "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed"],
    "early stopping": [*RUN, "callbacks=early_stopping", "callbacks.early_stopping.patience=2"],
    "more checkpoints": [*RUN, "callbacks.best.top_k=3", "callbacks.last.every=2"],
    "time limit": [*RUN, "trainer.max_steps=1e6", "trainer.max_time='00:00:00:08'"],
    **{f"task {name}": [*TASK, f"task={name}"] for name in TASKS},
    "task csv": [*TASK, "task=csv", "task.path=table.csv", "task.columns=[text]", "task.label=label"],
    "sweep": [*RUN, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "seed=1,2"],
    "search": ["tune", *RUN[1:], "optimizer.lr=interval(1e-3,1e-2)", "--study=s", "--trials=2"],
}
STORM["early stopping"] += ["optimizer=adamw", "optimizer.lr=0.3"]
# Rates that do not depend on the number of steps, and a row for each step, the last one included
STORM["time limit"] += ["scheduler.warmup_ratio=0", "scheduler.decay_ratio=0", "trainer.log_every_n_steps=1"]
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
MOMENTS = {  # at which a process is killed: when a file has appeared, and at most so many seconds later
    "at the start": ("", 5.0),
    "after a checkpoint": ("last.safetensors", 0.6),
    "while one is written": ("checkpoints/.*.tmp-*", 0.0),
    "between the first two": ("best.safetensors", 0.0),
    "at the end": ("result.json", 1.5),
}
WHILE_IT_TRAINS = ["after a checkpoint", "while one is written"]
LIVES = ["between the first two", *WHILE_IT_TRAINS, "at the start", *WHILE_IT_TRAINS, "at the end"]
LONG = [*LIVES[:-1], *WHILE_IT_TRAINS * 18, "at the end"]


def is_killed(command: list[str], folder: Path, moment: str, number: int) -> bool:
    """Start a program, and kill it with all that it has started at that moment. False if it had ended."""
    started, (pattern, latest) = time.time(), MOMENTS[moment]
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **output, start_new_session=True)
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # of a file that was renamed meanwhile
            if not pattern or any(path.stat().st_mtime >= started for path in folder.rglob(pattern)):
                break
        time.sleep(0.0005)
    time.sleep(random.uniform(0, latest))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    # a negative one is what the system does with a signal that comes before or after the training
    assert process.returncode in (0, -2, -9, -10, -15, 130, 138, 143), err
    return process.returncode != 0


def left_behind(run: Path) -> dict[str, Any]:
    """All that a run has written, but for the time that it took, and what differs in its configuration."""
    written = {path.name: read_checkpoint(path) for path in run.glob("checkpoints/*.safetensors")}
    for content in written.values():
        del content["gpt"]["config"]
        for clock in ("throughput", "Timer"):
            content.get("callbacks", {}).pop(clock, None)
    result = {key: value for key, value in read_result(run).items() if "second" not in key}
    written |= {"result.json": result, "metrics.csv": history(run)}
    written |= {f"events{name}": scalars(f"{run}{name}") for name in ("", "/train", "/best")}
    return written | {path.name: path.read_text() for path in run.glob("sample.txt")}


def prepare() -> None:
    """Write what the scenarios read: a play, a table, and a run with weights."""
    Path("play.txt").write_text(play("alpha", 400))
    lines = [f"it is {word} {n},{word}" for n in range(60) for word in ("good", "bad")]
    Path("table.csv").write_text("\n".join(["text,label", *lines]))
    assert run_program(*SMALLEST, *RUN[1:], "trainer.max_steps=4", "hydra.run.dir=source") == 0


@pytest.mark.slow
@pytest.mark.parametrize("scenario", STORM)
def test_storm_of_kills_changes_nothing(scenario, call, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # with more, equal bits are not promised
    prepare()
    program, *settings = STORM[scenario]
    flags = ["-m"] if scenario == "sweep" else []
    command = [sys.executable, str(ROOT / f"scripts/{program}.py"), *flags, *SMALLEST, *settings]
    has_several = scenario in ("sweep", "search")  # runs, and processes: only SIGKILL ends them all
    place = {"sweep": "hydra.sweep.dir=", "search": "name="}.get(scenario, "hydra.run.dir=")
    folder, kills = Path("outputs/tune/s" if scenario == "search" else "parts"), 0
    for moment in LONG if scenario == "long" else LIVES:
        number = signal.SIGKILL if has_several else random.choice(SIGNALS)
        if not is_killed([*command, f"{place}parts"], folder, moment, number):
            break
        kills += 1
        for path in folder.rglob("*.safetensors"):  # at any moment there is either none or a whole one
            read_checkpoint(path)
    time.sleep(70 if scenario == "search" else 0)  # until Optuna takes a process for killed
    subprocess.run([*command, f"{place}parts"], check=True, stdout=subprocess.DEVNULL)
    print(f"{scenario}: {kills} kills")
    assert kills >= (30 if scenario == "long" else 2)
    runs = [path.parent for path in folder.rglob("result.json")]  # of a search, some were left unfinished
    assert not [path for run in runs for path in run.rglob("checkpoints/.*.tmp-*")]
    assert len(runs) >= 1 + has_several
    for run in runs:
        whole = [*command, f"{place}whole"]
        if scenario == "time limit":
            whole += ["trainer.max_time=null", f"trainer.max_steps={read_result(run)['step']}"]
        elif scenario == "search":  # each of its runs is one that could have been typed
            typed = json.loads((run / "run.json").read_text())["overrides"]
            words = [f"{key}={'null' if value is None else value}" for key, value in typed.items()]
            whole = [sys.executable, str(ROOT / "scripts/train.py"), *words]
            whole += [f"hydra.run.dir=whole/{run.name}"]
        subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
        parts, once = left_behind(run), left_behind(Path("whole") / run.relative_to(folder))
        assert parts.keys() == once.keys()
        assert [name for name in parts if not same(parts[name], once[name])] == []
