"""What runs while a model is trained: each callback in a training of one weight."""

import csv
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from conftest import read_checkpoint
from gpt.callbacks import (
    EMA,
    AtomicCheckpointIO,
    AttentionMaps,
    BestCheckpoint,
    EarlyStopping,
    GracefulStop,
    HParams,
    LastCheckpoint,
    MetricsFile,
    ProgressBar,
    ProgressLines,
    ResumeAtStep,
    RunLogger,
    Samples,
    StepSeed,
    StoreMetadata,
    Throughput,
    ValidateAtEnd,
    make_all,
    watching,
)
from gpt.checkpoint import FORMAT
from gpt.errors import UserError
from gpt.machine import silence_lightning


class OneWeight(L.LightningModule):
    """A model of one weight, whose validation loss after each step is the one that `losses` says."""

    def __init__(self, losses: Callable[[int], float], max_steps: int) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.model.weight)
        self.losses, self.max_steps = losses, max_steps

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.model.weight.sum()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        loss = torch.tensor(self.losses(self.global_step), dtype=torch.float64)
        self.log_dict({"val/loss": loss, "val/bits_per_char": loss / math.log(2)})

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": LambdaLR(optimizer, lambda n: 1 - n / self.max_steps),
                "interval": "step",
            },
        }


def fit(
    folder: Path,
    max_steps: int,
    callbacks: list[Callback],
    losses: Callable[[int], float] = lambda step: 1 / step,
    every: int = 10,
    loggers: list[RunLogger] | None = None,
    accumulate: int = 1,
) -> L.Trainer:
    """Train OneWeight in a folder. If the folder has a last checkpoint, continue from it, as a run does."""
    silence_lightning()
    last = folder / "checkpoints" / "last.safetensors"
    always = [StepSeed(1), ResumeAtStep(), StoreMetadata({"format": FORMAT}), ValidateAtEnd()]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=min(every, max_steps) * accumulate,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=10,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[*callbacks, *always],
        plugins=[AtomicCheckpointIO()],
        logger=loggers or False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    for logger in loggers or []:
        logger.resume(read_checkpoint(last)["global_step"] if last.exists() else 0)
    batches, path = DataLoader(torch.zeros(1000, 1), batch_size=1), last if last.exists() else None
    data = (batches, DataLoader(torch.zeros(1, 1)))
    trainer.fit(OneWeight(losses, max_steps), *data, ckpt_path=path, weights_only=True)
    return trainer


def read_last(folder: Path, name: str = "last") -> dict:
    return read_checkpoint(folder / "checkpoints" / f"{name}.safetensors")


def both() -> list[Callback]:
    return [BestCheckpoint(), LastCheckpoint()]


# Arguments and classes, as a configuration names them

SAMPLES = {"_target_": "gpt.callbacks.Samples", "prompt": "a", "tokens": 5, "temperatures": [1.0]}
ATTENTION = {"_target_": "gpt.callbacks.AttentionMaps", "text": "a", "every": 1}
ZERO_SHOT = {"_target_": "gpt.callbacks.ZeroShot", "tasks": ["mark"], "examples": 5}
REFUSED = [
    (SAMPLES | {"tokens": "abc"}, "tokens = abc: should be a valid integer"),
    (SAMPLES | {"tokens": -1}, "tokens = -1: should be greater"),
    (SAMPLES | {"tokens": 100_001}, "tokens = 100001: should be less"),
    (SAMPLES | {"prompt": "x" * 10_001}, "prompt = x"),
    (SAMPLES | {"temperatures": []}, "temperatures = []: "),
    (SAMPLES | {"temperatures": [1.0] * 21}, "temperatures = [1.0, "),
    (SAMPLES | {"temperatures": 0.8}, "temperatures = 0.8: should be a valid list"),
    (SAMPLES | {"temperatures": [1.0, -1.0]}, "temperatures.1 = -1.0: should be greater"),
    (SAMPLES | {"temperatures": [math.nan]}, "temperatures.0 = nan: should be"),
    (SAMPLES | {"top_k": 0}, "top_k = 0: should be greater"),
    (SAMPLES | {"token": 5}, "token = 5: no such setting"),
    ({"_target_": "gpt.callbacks.Samples", "tokens": 5}, "prompt = "),
    (ATTENTION | {"every": 0}, "every = 0: should be greater"),
    (ATTENTION | {"text": "a" * 1001}, "text = a"),
    ({"_target_": "gpt.callbacks.EarlyStopping", "patience": 0}, "patience = 0: should be greater"),
    (
        {"_target_": "gpt.callbacks.EarlyStopping", "patience": 1, "monitor": "x"},
        "monitor = x: no such setting",
    ),
    ({"_target_": "gpt.callbacks.EMA", "decay": 1.0}, "decay = 1.0: should be less"),
    ({"_target_": "gpt.callbacks.EMA", "decay": 0}, "decay = 0: should be greater"),
    (ZERO_SHOT | {"examples": 0}, "examples = 0: should be greater"),
    (ZERO_SHOT | {"tasks": ["marks"]}, "tasks.0 = marks: should be 'mark', "),
]


@pytest.mark.parametrize(("node", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused_argument_is_named_in_one_line(node, message, tmp_path):
    with pytest.raises(UserError) as error:
        make_all("callbacks", {"mine": node}, tmp_path)
    line = str(error.value)
    assert line.startswith("callbacks.mine.")
    assert message in line
    assert line.isprintable()
    assert len(line) < 400


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "gpt.callbacks.Sample"}, "callbacks.x = gpt.callbacks.Sample: "),
        ({"_target_": "nowhere.Class"}, "callbacks.x = nowhere.Class: No module named 'nowhere'"),
        (
            {"_target_": "gpt.callbacks.BestCheckpoint", "monitor": "lr"},
            "BestCheckpoint() takes no arguments",
        ),
        ({"monitor": "lr"}, "names no class; write callbacks.x._target_=module.Class, or callbacks.x=null"),
        ({"_target_": 5}, "names no class"),
    ],
)
def test_class_that_cannot_be_made_is_one_line(node, message, tmp_path):
    with pytest.raises(UserError, match=r"^callbacks\.x = ") as error:
        make_all("callbacks", {"x": node}, tmp_path)
    assert message in str(error.value)
    assert str(error.value).isprintable()


def test_callbacks_of_lightning_and_of_ones_own_run_in_the_order_that_is_given(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("import lightning as L\n\n\nclass Mine(L.Callback):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    nodes = {
        "lr": {"_target_": "lightning.pytorch.callbacks.LearningRateMonitor", "logging_interval": "step"},
        "mine": {"_target_": "mine.Mine"},
        "best": {"_target_": "gpt.callbacks.BestCheckpoint"},
    }
    kinds = [type(callback).__name__ for callback in make_all("callbacks", nodes, tmp_path)]
    assert kinds == ["LearningRateMonitor", "Mine", "BestCheckpoint"]


def test_folder_of_a_logger_is_that_of_the_run_unless_it_is_set(tmp_path):
    node = {"_target_": "gpt.callbacks.MetricsFile", "save_dir": None}
    one, other = make_all("logger", {"a": node, "b": node | {"save_dir": "elsewhere"}}, tmp_path)
    assert (one.path, other.path) == (tmp_path / "metrics.csv", Path("elsewhere/metrics.csv"))


# States


def test_every_callback_restores_the_state_that_a_checkpoint_keeps(tmp_path):
    def stateful() -> list[Callback]:
        samples = Samples(prompt="a", tokens=1, temperatures=[1.0])
        return [BestCheckpoint(), Throughput(), samples, AttentionMaps(text="a", every=9), HParams({}, {})]

    states = {
        "best": {"score": 1.5, "step": 10},
        "throughput": {"characters": 1.0, "seconds": 1.0, "elapsed": 1.0},
        "samples": {"history": [[10, "text"]]},  # as JSON has it
        "attention": {"validations": 2},
        "hparams": {"best": 1.5},
    }
    after = stateful()
    for callback in after:
        callback.load_state_dict(states[callback.state_key])
        is_timed = isinstance(callback, Throughput)  # its clock continues
        expected = pytest.approx(states["throughput"], abs=1) if is_timed else callback.state_dict()
        assert callback.state_dict() == expected
    assert (after[0].score, after[0].step, after[2].latest, after[4].best) == (1.5, 10, "text", 1.5)


def test_samples_keep_a_history_that_survives_resuming_and_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(Samples, "sample", lambda self, trainer, *_: [f"after {trainer.global_step}"])
    monkeypatch.setattr(watching, "MOST_KEPT", 4)

    def steps(max_steps: int) -> list[int]:
        samples = Samples(prompt="a", tokens=1, temperatures=[1.0])
        fit(tmp_path, max_steps, [samples, *both()])
        assert all(text == f"after {step}" for step, text in samples.history)
        assert samples.latest == f"after {max_steps}"
        return [step for step, _ in samples.history]

    assert steps(20) == [10, 20]
    assert steps(40) == [10, 20, 30, 40]
    assert steps(70) == [10, 50, 70]  # twice there were five texts, of which every second one was dropped
    assert read_last(tmp_path)["callbacks"]["samples"]["history"][0] == [10, "after 10"]


def test_state_that_no_checkpoint_can_hold_is_one_line(tmp_path):
    class Odd(Callback):
        def state_dict(self) -> dict:
            return {"a": {1, 2}}

    with pytest.raises(
        UserError, match=r"not written, training/callbacks/.*Odd/a is a set, .*; let its state be"
    ):
        fit(tmp_path, 10, [LastCheckpoint(), Odd()])


# Checkpoints


def test_best_checkpoint_has_the_lowest_loss_and_last_the_newest(tmp_path):
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 35: 4.0}
    trainer = fit(tmp_path, 35, both(), losses.get)
    best = next(callback for callback in trainer.callbacks if isinstance(callback, BestCheckpoint))
    assert (best.score, best.step) == (1.0, 20)
    assert {name: read_last(tmp_path, name)["gpt"]["step"] for name in ("best", "last")} == {
        "best": 20,
        "last": 35,
    }
    assert read_last(tmp_path)["callbacks"]["best"] == {"score": 1.0, "step": 20}
    assert str(tmp_path) not in str(read_last(tmp_path)["callbacks"])  # no paths


def test_a_run_whose_folder_was_moved_still_knows_its_best_score(tmp_path):
    fit(tmp_path / "here", 20, both(), {10: 1.0, 20: 2.0}.get)
    shutil.move(tmp_path / "here", tmp_path / "there")
    trainer = fit(tmp_path / "there", 40, both(), {30: 1.5, 40: 3.0}.get)
    best = next(callback for callback in trainer.callbacks if isinstance(callback, BestCheckpoint))
    assert (best.score, best.step) == (1.0, 10)
    assert read_last(tmp_path / "there", "best")["gpt"]["step"] == 10
    assert not (tmp_path / "here").exists()


def test_metrics_are_on_disk_when_a_checkpoint_is(tmp_path, monkeypatch):
    seen = []
    save = AtomicCheckpointIO.save_checkpoint

    def note(*args, **kwargs) -> None:
        seen.append((tmp_path / "metrics.csv").read_text())
        save(*args, **kwargs)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", note)
    fit(tmp_path, 20, [LastCheckpoint()], loggers=[MetricsFile(str(tmp_path))])
    assert [text.splitlines()[-1].split(",")[0] for text in seen] == ["9", "19"]


# Schedule and seed


def test_a_resumed_run_takes_its_rates_from_its_configuration(tmp_path):
    rates = []

    class NoteRates(Callback):
        def on_train_batch_start(self, trainer, *args) -> None:
            rates.append((trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]))

    fit(tmp_path, 20, [LastCheckpoint(), NoteRates()])
    trainer = fit(tmp_path, 40, [LastCheckpoint(), NoteRates()])
    assert rates == [(n, pytest.approx(0.1 * (1 - n / 20))) for n in range(20)] + [
        (n, pytest.approx(0.1 * (1 - n / 40))) for n in range(20, 40)
    ]
    assert trainer.optimizers[0].param_groups[0]["betas"] == (0.9, 0.999)  # not a list, as JSON has it


# The end of a run


def test_the_last_step_is_validated_and_its_row_repeats_nothing(tmp_path):
    fit(tmp_path, 25, [LastCheckpoint()], loggers=[MetricsFile(str(tmp_path))])
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["val/loss"]] == ["9", "19", "24"]
    assert [row["step"] for row in rows if row["lr"]] == ["9", "19"]  # 24 is not a step that logs


def stop_early(folder: Path, kill_before_result: bool) -> tuple[int, int]:
    """The steps of a run with a patience of 2 and its lowest loss at step 20, before and after a resumption."""
    losses = {10: 2.0, 20: 1.0, 30: 1.5, 40: 1.4, 50: 0.5, 60: 0.4}.get
    first = fit(folder, 60, [*both(), EarlyStopping(patience=2)], losses)
    second = fit(folder, 60, [*both(), EarlyStopping(patience=2)], losses) if kill_before_result else first
    return first.global_step, second.global_step


def test_early_stopping_ends_a_run_after_its_patience(tmp_path):
    assert stop_early(tmp_path, kill_before_result=False) == (40, 40)


def test_a_run_that_was_killed_after_its_patience_ended_stops_at_once_when_resumed(tmp_path):
    assert stop_early(tmp_path, kill_before_result=True) == (40, 40)
    assert read_last(tmp_path)["global_step"] == 40


def test_patience_counts_across_an_interruption(tmp_path):
    losses = {10: 1.0, 20: 2.0, 30: 3.0, 40: 0.5}.get
    fit(tmp_path, 20, [LastCheckpoint(), EarlyStopping(patience=2)], losses)
    assert fit(tmp_path, 60, [LastCheckpoint(), EarlyStopping(patience=2)], losses).global_step == 30


class SendSignal(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer, *args) -> None:
        if trainer.global_step == self.step - 1:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("kinds", [[], [LastCheckpoint]], ids=["without last", "with last"])
@pytest.mark.parametrize("step", [4, 10])  # the second is validated
def test_a_signal_saves_the_step_and_ends_the_process(step, kinds, tmp_path, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        fit(
            tmp_path,
            20,
            [SendSignal(step), GracefulStop("To continue: resume=here"), *[kind() for kind in kinds]],
        )
    assert stop.value.code == 143
    assert (
        capsys.readouterr().out
        == f"stopped after {step} steps; everything is saved.\nTo continue: resume=here\n"
    )
    assert read_last(tmp_path)["global_step"] == step
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_that_comes_while_processes_agree_is_not_lost(tmp_path):
    stop = GracefulStop("")
    received = [0, signal.SIGTERM]  # by another process, at each of two steps

    def reduce(number: torch.Tensor, reduce_op: str) -> torch.Tensor:
        stop.signal = stop.signal or signal.SIGUSR1
        return torch.tensor(received.pop(0))

    strategy = SimpleNamespace(reduce=reduce)
    trainer = SimpleNamespace(world_size=2, global_step=1, accumulate_grad_batches=1, strategy=strategy)
    trainer.fit_loop, trainer.default_root_dir = SimpleNamespace(batch_idx=0), tmp_path
    trainer.is_global_zero, trainer.save_checkpoint = True, lambda path: None
    module, stop.first_step = SimpleNamespace(device="cpu"), 0
    stop.on_train_batch_start(trainer, module)
    assert (stop.signal, stop.stopping) == (signal.SIGUSR1, False)
    with pytest.raises(SystemExit, match="143"):
        stop.on_train_batch_start(trainer, module)


def test_averaged_weights_are_saved_in_addition_to_those_that_training_continues_with(tmp_path):
    for folder, max_steps in (("whole", 40), ("parts", 20), ("parts", 40)):
        fit(tmp_path / folder, max_steps, [LastCheckpoint(), EMA(decay=0.5)], accumulate=2)
    for content in (read_last(tmp_path / run) for run in ("whole", "parts")):
        assert content["state_dict"]["weight"] != content["current_model_state"]["model.weight"]
        assert content["averaging_state"]["n_averaged"] == 40


# What is shown


def test_throughput_counts_training_alone(monkeypatch):
    now, logged = [100.0], []
    monkeypatch.setattr(watching, "perf_counter", lambda: now[0])
    callback = Throughput()
    trainer = SimpleNamespace(world_size=2, datamodule=SimpleNamespace(characters_per_id=1.0))
    module = SimpleNamespace(log=lambda name, value, prog_bar: logged.append((name, value)))
    module.is_logged = lambda batch_idx: batch_idx % 2 == 1
    batch = (torch.zeros(3, 5), None)
    now[0] += 1000  # before the first batch
    for step in range(4):
        callback.on_train_batch_start(trainer, module, batch, step)
        now[0] += 0.5
        callback.on_train_batch_end(trainer, module, None, batch, step)
        if step == 2:
            callback.on_validation_start(trainer, module)
            now[0] += 1000  # the validation, and what follows it
    assert logged == [
        ("perf/chars_per_second", 60.0),
        ("perf/chars_per_second", 60.0),
    ]  # 2 x 15 characters in half a second
    assert (callback.characters, callback.seconds, callback.elapsed) == (120, 2.0, 2002.0)


def test_progress_lines_tell_step_and_loss(tmp_path, capsys):
    fit(tmp_path, 20, [ProgressLines()], lambda step: step / 8)
    assert capsys.readouterr().out == "step 10 of 20  val/loss 1.2500\nstep 20 of 20  val/loss 2.5000\n"


def set_width(monkeypatch, columns: int) -> None:
    """Let standard output look like a terminal of so many columns to tqdm."""
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((columns, 24)))


@pytest.mark.parametrize("columns", [80, 140])
def test_progress_bar_is_one_line_that_counts_the_steps_of_the_whole_run(
    tmp_path, capsys, monkeypatch, columns
):
    set_width(monkeypatch, columns)
    fit(tmp_path, 10, [LastCheckpoint()])
    fit(tmp_path, 300, [LastCheckpoint(), ProgressBar()], every=300, accumulate=2)
    out = capsys.readouterr().out
    lines = out.removesuffix("\n").split("\r")
    assert "\n" not in "".join(lines)  # and the cursor ends at the beginning of the next line
    assert lines[1].startswith("10/300 ")
    assert re.fullmatch(r"300/300 \S+  ETA 00:00  val 0\.003", lines[-1])
    assert {len(line) for line in lines[1:]} == {columns - 1}


def test_narrow_progress_bar_leaves_out_numbers_and_is_erased_if_asked(tmp_path, capsys, monkeypatch):
    set_width(monkeypatch, 44)
    monkeypatch.setattr(ProgressBar, "ending", lambda self, trainer: "all done in 1:00")
    fit(tmp_path, 10, [ProgressBar("1 of 2  ", leave=False)], every=5)
    *lines, erased, end = capsys.readouterr().out.split("\r")
    assert lines[-1].startswith("1 of 2  10/10 ")
    assert lines[-1].endswith("  all done in 1:00")
    assert len(lines[-1]) == 43
    assert (erased.strip(), end) == ("", "")


def test_progress_bar_ends_before_a_stopped_run_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit(tmp_path, 20, [SendSignal(3), ProgressBar(), GracefulStop("continue")])
    *_, line, stopped, advice = capsys.readouterr().out.splitlines()
    assert line.split("\r")[-1].startswith("3/20 ")
    assert (stopped[:13], advice) == ("stopped after", "continue")
