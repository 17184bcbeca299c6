"""What runs while a model is trained: each callback in a training of one weight."""
# ruff: noqa: I001 - several names on a line

import math
import os
import re
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from conftest import read_last
from gpt.callbacks import ProgressBar, ProgressLines, RunLogger, Samples, Throughput
from gpt.callbacks import make_all, watching
from gpt.callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint, EarlyStopping, GracefulStop
from gpt.callbacks.checkpoints import LastCheckpoint, MaxSteps, StepSeed
from gpt.checkpoint import FORMAT
from gpt.cli.main import compose_config
from gpt.errors import UserError
from gpt.machine import silence_lightning


class OneWeight(L.LightningModule):
    """A model of one weight, whose validation loss after each step is the one that `losses` says."""

    def __init__(self, losses: Callable[[int], float], max_steps: int) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.model.weight)
        self.losses, self.max_steps, self.step_loss = losses, max_steps, torch.tensor(0.25)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.model.weight.sum()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        loss = torch.tensor(self.losses(self.global_step), dtype=torch.float64)
        self.log_dict({"val/loss": loss, "val/bits_per_char": loss / math.log(2)})

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        schedule = LambdaLR(optimizer, lambda n: 1 - n / self.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    folder: Path,
    max_steps: int,
    callbacks: list[Callback],
    losses: Callable[[int], float] = lambda step: 1 / step,
    every: int = 10,
    loggers: Sequence[RunLogger] = (),
    accumulate: int = 1,
) -> L.Trainer:
    """Train OneWeight in a folder. Continue from the last checkpoint, if there is one, as a run does."""
    silence_lightning()
    last = folder / "checkpoints/last.safetensors"
    trainer = L.Trainer(
        **dict(accelerator="cpu", max_steps=max_steps, max_epochs=-1, log_every_n_steps=10),
        **dict(val_check_interval=min(every, max_steps) * accumulate, accumulate_grad_batches=accumulate),
        **dict(num_sanity_val_steps=0, default_root_dir=folder, enable_model_summary=False),
        callbacks=[*callbacks, StepSeed(1), MaxSteps()],
        plugins=[AtomicCheckpointIO({"format": FORMAT}, loggers, accumulate)],
        logger=loggers or False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
    )
    for logger in loggers:
        logger.resume(read_last(folder)["global_step"] if last.exists() else 0)
    data = (DataLoader(torch.zeros(1000, 1), batch_size=1), DataLoader(torch.zeros(1, 1)))
    where = {"ckpt_path": last if last.exists() else None, "weights_only": True}
    trainer.fit(OneWeight(losses, max_steps), *data, **where)
    return trainer


def both() -> list[Callback]:
    return [BestCheckpoint(), LastCheckpoint()]


REFUSED = {  # of what is typed, the last word, by the reason
    "callbacks.samples.temperatures=[]": "should have at least 1 item",
    "callbacks.best.top_k=0": "should be greater",
    "callbacks.last.every=0": "should be greater",
    "+callbacks.best.monitor=lr": "no such setting",
    "callbacks=early_stopping callbacks.early_stopping.min_delta=-1": "should be greater",
    "callbacks=ema callbacks.ema.decay=1.0": "should be less",
    "callbacks=zero_shot callbacks.zero_shot.tasks=[marks]": "should be 'mark', 'follows'",
    "+callbacks.x._target_=gpt.callbacks.Sample": "",
    "+callbacks.x._target_=nowhere.Class": "No module named 'nowhere'",
    "+callbacks.x.monitor=lr": "names no class; write callbacks.x._target_=module.Class, or callbacks.x=null",
    "+callbacks.x._target_=5": "names no class",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_refused_class_or_argument_is_named_in_one_line(typed, tmp_path):
    words = typed.split()
    nodes = compose_config(words).callbacks
    with pytest.raises(UserError, match=rf"^{'.'.join(words[-1].strip('+').split('.')[:2])}") as error:
        make_all("callbacks", nodes, tmp_path)
    assert REFUSED[typed] in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


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

    with pytest.raises(UserError, match=r"not written, training/callbacks/.*Odd/a is a set, .*; let its"):
        fit(tmp_path, 10, [LastCheckpoint(), Odd()])


# Checkpoints


def test_best_checkpoint_has_the_lowest_loss_and_last_the_newest_also_in_a_folder_that_was_moved(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    fit(here, 25, both(), {10: 3.0, 20: 1.0, 25: 2.0}.get)
    assert [read_last(here, name)["gpt"]["step"] for name in ("best", "last")] == [20, 25]
    assert read_last(here)["callbacks"]["best"] == {"score": 1.0, "step": 20, "ranking": []}
    assert str(tmp_path) not in str(read_last(here)["callbacks"])  # no paths
    shutil.move(here, there)
    trainer = fit(there, 45, both(), {30: 1.5, 40: 1.2, 45: 4.0}.get)
    best = next(callback for callback in trainer.callbacks if isinstance(callback, BestCheckpoint))
    assert (best.score, best.step) == (1.0, 20)
    assert [read_last(there, name)["gpt"]["step"] for name in ("best", "last")] == [20, 45]
    assert not here.exists()


def test_more_of_the_best_and_one_in_so_many_checkpoints_are_kept(tmp_path):
    """Also those of Lightning's own callback, which have names of its own."""

    def names(max_steps: int) -> set[str]:
        own = ModelCheckpoint(tmp_path / "own", every_n_train_steps=20, filename="{step}")
        fit(tmp_path, max_steps, [BestCheckpoint(top_k=2), LastCheckpoint(every=3), own], losses)
        assert [path.name for path in (tmp_path / "own").iterdir()] == [f"step={max_steps}.safetensors"]
        return {path.stem for path in (tmp_path / "checkpoints").iterdir()}

    losses = {10: 3.0, 20: 1.0, 30: 4.0, 40: 2.0, 50: 1.5, 60: 0.5}.get
    assert names(40) == {"best", "last", "best-20", "best-40", "step-30"}
    assert names(60) == {"best", "last", "best-20", "best-60", "step-30", "step-60"}
    for name in ("best", "best-60", "step-60"):
        assert read_last(tmp_path, name).keys() == {"gpt", "state_dict"}
        assert read_last(tmp_path, name)["gpt"]["step"] == 60


def test_a_resumed_run_takes_its_rates_from_its_configuration(tmp_path):
    rates = []

    class NoteRates(Callback):
        def on_train_batch_start(self, trainer, *args) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(tmp_path, 20, [LastCheckpoint(), NoteRates()])
    fit(tmp_path, 40, [LastCheckpoint(), NoteRates()])
    expected = [0.1 * (1 - n / 20) for n in range(20)] + [0.1 * (1 - n / 40) for n in range(20, 40)]
    assert rates == pytest.approx(expected)


# The end of a run


def test_early_stopping_counts_across_an_interruption_also_if_it_was_killed_at_the_end(tmp_path):
    losses = {10: 2.0, 20: 1.0, 30: 1.5, 40: 1.4, 50: 0.5, 60: 0.4}.get
    fit(tmp_path, 30, [*both(), EarlyStopping(patience=2)], losses)
    for _ in range(2):  # the second time it was killed before its result was written
        assert fit(tmp_path, 60, [*both(), EarlyStopping(patience=2)], losses).global_step == 40
    assert read_last(tmp_path)["global_step"] == 40


class SendSignal(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer, *args) -> None:
        if trainer.global_step == self.step - 1:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("kinds", [[], [LastCheckpoint]], ids=["without last", "with last"])
@pytest.mark.parametrize("step", [4, 10, 20])  # the second is validated, and the third is the last
def test_a_signal_saves_the_step_and_ends_the_process(step, kinds, tmp_path, capsys):
    handler, stop = signal.getsignal(signal.SIGTERM), GracefulStop("To continue: resume=here")
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, 20, [SendSignal(step), stop, *[kind() for kind in kinds]])
    assert end.value.code == 143
    printed = f"stopped after {step} steps; everything is saved.\nTo continue: resume=here\n"
    assert capsys.readouterr().out == printed
    assert read_last(tmp_path)["global_step"] == step
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_that_comes_too_late_is_handed_to_who_handled_it_before(tmp_path):
    class SendLate(Callback):
        def teardown(self, *args, **kwargs) -> None:
            signal.raise_signal(signal.SIGTERM)

    received = []
    former = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        fit(tmp_path, 10, [SendLate(), GracefulStop("")])
    finally:
        signal.signal(signal.SIGTERM, former)
    assert received == [signal.SIGTERM]


# What is shown


def test_throughput_counts_training_alone_and_says_once_that_threads_wait(monkeypatch, capsys):
    now, logged, callback = [100.0], [], Throughput()
    monkeypatch.setattr(watching, "perf_counter", lambda: now[0])
    monkeypatch.setattr(watching, "waiting_seconds", lambda: 0.3 * now[0])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    trainer = SimpleNamespace(world_size=2, datamodule=SimpleNamespace(characters_per_id=1.0))
    module = SimpleNamespace(log=lambda name, value, prog_bar: logged.append((name, value)))
    module.is_logged, module.device = lambda batch_idx: batch_idx % 2 == 1, torch.device("cpu")
    batch = (torch.zeros(3, 5), None)
    callback.on_train_start(trainer, module)
    for step in range(6):
        callback.on_train_batch_start(trainer, module, batch, step)
        now[0] += 0.5
        callback.on_train_batch_end(trainer, module, None, batch, step)
        if step == 2:
            callback.on_validation_start(trainer, module)
            now[0] += 1000  # the validation, and what follows it
    assert logged == [("perf/chars_per_second", 60.0)] * 3  # 2 x 15 characters in half a second
    assert (callback.characters, callback.seconds) == (180, 3.0)
    said = "note: 60 characters/s: threads wait for each other, because other work has the cores 30% of the"
    err = capsys.readouterr().err  # once, and not within the first seconds
    assert err.startswith(said)
    assert err.endswith("continue with OMP_NUM_THREADS=1\n")
    assert err.count("\n") == 1


def test_progress_lines_tell_step_and_loss(tmp_path, capsys):
    fit(tmp_path, 20, [ProgressLines()], lambda step: step / 8)
    lines = [f"step {n} of 20  train/loss 0.2500  val/loss {n / 8:.4f}" for n in (10, 20)]
    assert capsys.readouterr().out.splitlines() == lines


def test_progress_lines_say_once_how_long_the_steps_will_take(capsys, monkeypatch):
    seconds, lines = iter([100.0, 102.0, 106.0, 110.0]), ProgressLines()
    monkeypatch.setattr(watching, "perf_counter", lambda: next(seconds))
    for step in (1, 2, 4, 6):  # the first one may have compiled the model, and does not count
        lines.on_train_batch_end(SimpleNamespace(global_step=step, max_steps=100, is_global_zero=True))
    line = "the other 96 steps take about 03:12, and validations some more\n"  # 2 s each
    assert capsys.readouterr().out == line
    seconds, lines = iter([100.0, 110.0]), ProgressLines()
    for step in (1, 6):  # a run that is almost at its end
        lines.on_train_batch_end(SimpleNamespace(global_step=step, max_steps=12, is_global_zero=True))
    assert capsys.readouterr().out == ""


def set_width(monkeypatch, columns: int) -> None:
    """Let standard output look like a terminal of so many columns to tqdm."""
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((columns, 24)))


@pytest.mark.parametrize("columns", [80, 140])
def test_progress_bar_is_one_line_that_counts_all_steps(tmp_path, capsys, monkeypatch, columns):
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
    fit(tmp_path, 10, [ProgressBar("1 of 2  ", leave=False)], every=5)
    *lines, erased, end = capsys.readouterr().out.split("\r")
    assert lines[-1].startswith("1 of 2  10/10 ")
    assert lines[-1].endswith("  ETA 00:00")  # and no loss
    assert len(lines[-1]) == 43
    assert (erased.strip(), end) == ("", "")


def test_progress_bar_is_erased_before_a_stopped_run_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit(tmp_path, 20, [SendSignal(3), ProgressBar(), GracefulStop("continue")])
    *_, line, advice, _ = capsys.readouterr().out.split("\n")
    *_, drawn, erased, stopped = line.split("\r")
    assert "/20 " in drawn
    assert (erased.strip(), stopped[:13], advice) == ("", "stopped after", "continue")
