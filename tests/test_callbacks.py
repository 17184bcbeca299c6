"""What runs beside training: each callback in a training of one weight, and states and settings that a stranger has written."""

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

from gpt.callbacks import CALLBACKS, check_states, make_callbacks, make_loggers, throughput
from gpt.callbacks.attention_maps import AttentionMaps
from gpt.callbacks.averaging import EMA
from gpt.callbacks.checkpoints import BestCheckpoint, LastCheckpoint, StoreMetadata
from gpt.callbacks.metrics_file import MetricsFile
from gpt.callbacks.progress import ProgressBar, ProgressLines
from gpt.callbacks.run_logger import RunLogger
from gpt.callbacks.samples import Samples
from gpt.callbacks.step_seed import ResumeAtStep, StepSeed
from gpt.callbacks.stopping import EarlyStopping, GracefulStop, ValidateAtEnd
from gpt.callbacks.tensorboard import HParams
from gpt.callbacks.throughput import Throughput
from gpt.runs.machine import silence_lightning
from gpt.settings import UserError

PLAIN = [BestCheckpoint, LastCheckpoint]


class OneWeight(L.LightningModule):
    """A model of one weight, whose validation loss after each step is the one that `losses` says."""

    def __init__(self, losses: Callable[[int], float], max_steps: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.losses, self.max_steps = losses, max_steps

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        return self.weight.sum()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        loss = torch.tensor(self.losses(self.global_step), dtype=torch.float64)
        self.log_dict({"val/loss": loss, "val/bits_per_char": loss / math.log(2)})

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": LambdaLR(optimizer, lambda n: 1 - n / self.max_steps), "interval": "step"},
        }


def fit(
    folder: Path,
    max_steps: int,
    callbacks: list[Callback],
    losses: Callable[[int], float] = lambda step: 1 / step,
    every: int = 10,
    loggers: list[RunLogger] | None = None,
    log_every: int = 10,
    accumulate: int = 1,
) -> L.Trainer:
    """Train OneWeight in a folder. Where the folder has a last checkpoint, go on from it, as a run does."""
    silence_lightning()
    last = folder / "checkpoints" / "last.ckpt"
    always = [StepSeed(1), ResumeAtStep(), StoreMetadata({"format": 3}), ValidateAtEnd()]
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=min(every, max_steps) * accumulate,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=log_every,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[*callbacks, *always],
        logger=loggers or False,
        enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        enable_model_summary=False,
    )
    if last.exists():
        content = torch.load(last, weights_only=True)
        check_states(trainer.callbacks, content["callbacks"])
        for logger in loggers or []:
            logger.resume(content["global_step"])
    batches = DataLoader(torch.zeros(1000, 1), batch_size=1)
    path = last if last.exists() else None
    trainer.fit(OneWeight(losses, max_steps), batches, DataLoader(torch.zeros(1, 1)), ckpt_path=path, weights_only=True)
    return trainer


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    """Change the last checkpoint of a folder, as a stranger could."""
    path = folder / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


# Names, settings, order


def test_callbacks_run_in_the_order_of_the_registry():
    settings = {"ema": {"decay": 0.5}, "last": {}, "best": {}, "throughput": {}}
    kinds = [type(callback) for callback in make_callbacks(settings)]
    assert kinds == [BestCheckpoint, LastCheckpoint, Throughput, EMA]


SAMPLES = {"prompt": "a", "tokens": 5, "temperatures": [1.0]}
REFUSED_SETTINGS = [
    ({"sample": {}}, "callbacks.sample = {}: no such name; did you mean samples?"),
    ({"best": {"monitor": "lr"}}, "callbacks.best.monitor = lr: no such setting; it has no settings"),
    ({"best": {"dirpath": "http://127.0.0.1/secret"}}, "callbacks.best.dirpath = http"),
    ({"best": {"filename": "../../evil"}}, "callbacks.best.filename"),
    ({"last": {"save_top_k": 0}}, "callbacks.last.save_top_k"),
    ({"throughput": {"clock": "os.system"}}, "callbacks.throughput.clock"),
    ({"samples": SAMPLES | {"_target_": "os.system"}}, "callbacks.samples._target_ = os.system: no such setting"),
    ({"samples": SAMPLES | {"_partial_": True}}, "callbacks.samples._partial_ = True: no such setting"),
    ({"samples": {}}, "callbacks.samples.prompt"),
    ({"samples": SAMPLES | {"tokens": -1}}, "callbacks.samples.tokens = -1"),
    ({"samples": SAMPLES | {"tokens": 100_001}}, "callbacks.samples.tokens = 100001"),
    ({"samples": SAMPLES | {"tokens": "abc"}}, "callbacks.samples.tokens = abc: not a whole number"),
    ({"samples": SAMPLES | {"prompt": "x" * 10_001}}, "callbacks.samples.prompt"),
    ({"samples": SAMPLES | {"temperatures": []}}, "callbacks.samples.temperatures"),
    ({"samples": SAMPLES | {"temperatures": [1.0] * 21}}, "callbacks.samples.temperatures"),
    ({"samples": SAMPLES | {"temperatures": 0.8}}, "callbacks.samples.temperatures = 0.8: not a list"),
    ({"samples": SAMPLES | {"temperatures": [-1.0]}}, "callbacks.samples.temperatures = -1"),
    ({"samples": SAMPLES | {"top_k": 0}}, "callbacks.samples.top_k = 0"),
    ({"attention": {"text": "a", "every": 0}}, "callbacks.attention.every = 0"),
    ({"attention": {"text": "a" * 1001, "every": 1}}, "callbacks.attention.text"),
    ({"early_stopping": {"patience": 0}}, "callbacks.early_stopping.patience = 0"),
    ({"early_stopping": {"patience": "abc"}}, "callbacks.early_stopping.patience = abc"),
    ({"early_stopping": {"patience": 1, "monitor": "foo"}}, "callbacks.early_stopping.monitor = foo: no such setting"),
    ({"ema": {"decay": 1.0}}, "callbacks.ema.decay = 1.0"),
    ({"ema": {"decay": 0}}, "callbacks.ema.decay = 0.0"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED_SETTINGS, ids=[message for _, message in REFUSED_SETTINGS])
def test_a_refused_setting_is_named_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        make_callbacks(settings)
    assert "\n" not in str(error.value)


def test_logger_settings_are_checked(tmp_path):
    assert [type(logger).__name__ for logger in make_loggers({"tensorboard": {}, "csv": {}}, tmp_path)] == [
        "MetricsFile",
        "TensorBoard",
    ]
    for settings in ({"csv": {"path": "/dev/full"}}, {"tensorboard": {"save_dir": "/proc"}}, {"wandb": {}}):
        with pytest.raises(UserError, match=r"^logger\.\S+ = .*: no such"):
            make_loggers(settings, tmp_path)


def test_no_setting_of_any_callback_is_a_path():
    names = {key for kind in CALLBACKS.values() for key in getattr(kind.__init__, "__annotations__", {})}
    assert names - {"return"} == {
        "prompt",
        "tokens",
        "temperatures",
        "top_k",
        "text",
        "every",
        "patience",
        "decay",
        "tasks",
        "examples",
    }


# States in a checkpoint that a stranger has written

NUMBERS = ["1", None, [], {}, True, math.nan, math.inf, -1, 10**400, torch.tensor(1.0), b"1"]
GOOD_STATES = {
    "best": {"score": 1.5, "step": 10},
    "throughput": {"characters": 1.0, "seconds": 1.0, "elapsed": 1.0},
    "samples": {"history": [(10, "text")]},
    "attention": {"validations": 2},
    "early_stopping": {"lowest": 1.5, "validations": 2},
    "hparams": {"best": 1.5},
}
HOSTILE_STATES = [
    *[("best", {"score": 1.5, "step": value}) for value in NUMBERS],
    *[("best", {"score": value, "step": 1}) for value in NUMBERS if value is not None],
    ("best", {}),
    ("best", {"score": 1.5}),
    ("best", {"score": 1.5, "step": 1, "best_model_path": "/home/precious"}),
    ("best", {"score": 1.5, "step": 2**31}),
    *[("throughput", GOOD_STATES["throughput"] | {key: value}) for key in ("characters", "seconds") for value in NUMBERS],
    *[("samples", {"history": [(1, value)]}) for value in (None, [], {}, b"x", "\ud800", "x" * (2**24 + 1), torch.zeros(3))],
    *[("samples", {"history": [(value, "text")]}) for value in NUMBERS],
    *[("samples", {"history": value}) for value in (None, {}, "text", [1], [(1, "text", 2)], [(1, "text")] * 101)],
    *[("attention", {"validations": value}) for value in NUMBERS],
    *[("early_stopping", {"lowest": 1.5, "validations": value}) for value in NUMBERS],
    ("early_stopping", {"lowest": 1.5, "validations": 2, "patience": 1}),
    *[("hparams", {"best": value}) for value in NUMBERS if value is not None],
    ("ema", {"latest_update_step": 10**9}),
    ("Timer", {"time_elapsed": {"train": "never"}}),
    ("Timer", {"time_elapsed": 1}),
    ("os.system", {"a": 1}),
    ("a\nb\x1b[31m", {"a": 1}),
    ("best", "text"),
    ("best", torch.zeros(3)),
    ("best", None),
    (1, {}),
]


def all_stateful() -> list[Callback]:
    samples = Samples(prompt="a", tokens=1, temperatures=[1.0])
    attention, stopping = AttentionMaps(text="a", every=1), EarlyStopping(patience=2)
    return [BestCheckpoint(), Throughput(), samples, attention, stopping, EMA(decay=0.5), HParams({}, {})]


@pytest.mark.parametrize(("name", "state"), HOSTILE_STATES)
def test_a_hostile_callback_state_is_refused_in_one_line(name, state):
    with pytest.raises(UserError, match=r"^checkpoint = ") as error:
        check_states(all_stateful(), GOOD_STATES | {name: state})
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("states", [None, [], "text", torch.zeros(2), {"best": []}])
def test_callback_states_must_be_a_dictionary_of_dictionaries(states):
    with pytest.raises(UserError, match=r"^checkpoint = "):
        check_states(all_stateful(), states)


def test_every_callback_restores_the_state_it_saved():
    before, after = all_stateful(), all_stateful()
    check_states(before, GOOD_STATES)
    check_states(after, {callback.state_key: state for callback in before if (state := callback.state_dict())})
    for one, other in zip(before, after, strict=True):
        is_timed = isinstance(one, Throughput)  # elapsed time goes on
        assert one.state_dict() == (pytest.approx(other.state_dict(), abs=1) if is_timed else other.state_dict())
    assert (after[0].score, after[0].step, after[2].latest, after[6].best) == (1.5, 10, "text", 1.5)


def test_a_checkpoint_cannot_make_a_resumed_run_delete_a_folder(tmp_path):
    run, precious = tmp_path / "run", tmp_path / "precious"
    precious.mkdir()
    fit(run, 10, [kind() for kind in PLAIN])
    lightnings_key = "ModelCheckpoint{'monitor': None, 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1}"
    state = {"best_model_path": f"{run}/checkpoints/../../precious", "dirpath": f"{run}/checkpoints"}
    for key in ("best", lightnings_key):
        edit(run, lambda content, key=key: content["callbacks"].update({key: state}))
        with pytest.raises(UserError, match=r"^checkpoint = "):
            fit(run, 20, [kind() for kind in PLAIN])
    assert precious.exists()


def test_samples_keep_a_history_that_survives_resuming_and_stays_small(tmp_path, monkeypatch):
    monkeypatch.setattr(Samples, "sample", lambda self, trainer, *_: f"after {trainer.global_step}")
    monkeypatch.setattr("gpt.callbacks.samples.MOST_KEPT", 4)

    def steps(max_steps: int) -> list[int]:
        samples = Samples(prompt="a", tokens=1, temperatures=[1.0])
        fit(tmp_path, max_steps, [samples, *(kind() for kind in PLAIN)])
        assert all(text == f"after {step}" for step, text in samples.history)
        assert samples.latest == f"after {max_steps}"
        return [step for step, _ in samples.history]

    assert steps(20) == [10, 20]
    assert steps(40) == [10, 20, 30, 40]
    assert steps(70) == [10, 50, 70]  # twice there were five texts, of which every second one was dropped
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["samples"]["history"]
    assert saved[0] == (10, "after 10")


# Checkpoints


def test_best_checkpoint_has_the_lowest_loss_and_last_the_newest(tmp_path):
    losses = {10: 3.0, 20: 1.0, 30: 2.0, 35: 4.0}
    trainer = fit(tmp_path, 35, [kind() for kind in PLAIN], losses.get)
    best = next(callback for callback in trainer.callbacks if isinstance(callback, BestCheckpoint))
    assert (best.score, best.step) == (1.0, 20)
    checkpoints = {path.name: torch.load(path, weights_only=True) for path in (tmp_path / "checkpoints").iterdir()}
    assert {name: content["global_step"] for name, content in checkpoints.items()} == {"best.ckpt": 20, "last.ckpt": 35}
    assert all(content["callbacks"]["best"] == {"score": 1.0, "step": 20} for content in checkpoints.values())
    assert all(content["gpt"] == {"format": 3} for content in checkpoints.values())
    assert str(tmp_path) not in str([content["callbacks"] for content in checkpoints.values()])  # no paths


def test_a_run_whose_folder_was_moved_still_knows_its_best_score(tmp_path):
    fit(tmp_path / "here", 20, [kind() for kind in PLAIN], {10: 1.0, 20: 2.0}.get)
    shutil.move(tmp_path / "here", tmp_path / "there")
    trainer = fit(tmp_path / "there", 40, [kind() for kind in PLAIN], {30: 1.5, 40: 3.0}.get)
    best = next(callback for callback in trainer.callbacks if isinstance(callback, BestCheckpoint))
    assert (best.score, best.step) == (1.0, 10)
    assert torch.load(tmp_path / "there" / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 10
    assert not (tmp_path / "here").exists()


def test_metrics_are_on_disk_when_a_checkpoint_is(tmp_path, monkeypatch):
    seen = []
    save = L.pytorch.plugins.TorchCheckpointIO.save_checkpoint

    def note(*args, **kwargs) -> None:
        seen.append((tmp_path / "metrics.csv").read_text())
        save(*args, **kwargs)

    monkeypatch.setattr(L.pytorch.plugins.TorchCheckpointIO, "save_checkpoint", note)
    fit(tmp_path, 20, [LastCheckpoint()], loggers=[MetricsFile(tmp_path)])
    assert [text.splitlines()[-1].split(",")[0] for text in seen] == ["9", "19"]


# Schedule and seed


def test_a_resumed_run_takes_its_rates_from_its_configuration(tmp_path):
    def spoil(content: dict) -> None:
        content["optimizer_states"][0]["param_groups"][0] |= {"lr": 7.0, "weight_decay": 3.0, "betas": "abc", "initial_lr": 9.0}
        content["lr_schedulers"] = [{"base_lrs": "abc", "last_epoch": None, "step": 1, "get_lr": 2}]

    rates = []

    class NoteRates(Callback):
        def on_train_batch_start(self, trainer, *args) -> None:
            rates.append((trainer.global_step, trainer.optimizers[0].param_groups[0]["lr"]))

    fit(tmp_path, 20, [LastCheckpoint(), NoteRates()])
    edit(tmp_path, spoil)
    trainer = fit(tmp_path, 40, [LastCheckpoint(), NoteRates()])
    assert rates == [(n, pytest.approx(0.1 * (1 - n / 20))) for n in range(20)] + [
        (n, pytest.approx(0.1 * (1 - n / 40))) for n in range(20, 40)
    ]
    group = trainer.optimizers[0].param_groups[0]
    assert (group["weight_decay"], group["betas"]) == (0.01, (0.9, 0.999))


# The end of a run


def test_the_last_step_is_validated_and_its_row_repeats_nothing(tmp_path):
    fit(tmp_path, 25, [LastCheckpoint()], loggers=[MetricsFile(tmp_path)])
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["val/loss"]] == ["9", "19", "24"]
    assert [row["step"] for row in rows if row["lr"]] == ["9", "19"]  # 24 is not a step that logs


def stop_early(folder: Path, kill_before_result: bool) -> tuple[int, int]:
    """The steps of a run with a patience of 2 whose loss is lowest at step 20, before and after it is resumed."""
    losses = {10: 2.0, 20: 1.0, 30: 1.5, 40: 1.4, 50: 0.5, 60: 0.4}.get
    first = fit(folder, 60, [*[kind() for kind in PLAIN], EarlyStopping(patience=2)], losses)
    second = fit(folder, 60, [*[kind() for kind in PLAIN], EarlyStopping(patience=2)], losses) if kill_before_result else first
    return first.global_step, second.global_step


def test_early_stopping_ends_a_run_after_its_patience(tmp_path):
    assert stop_early(tmp_path, kill_before_result=False) == (40, 40)


def test_a_run_that_was_killed_after_its_patience_ended_stops_at_once_when_resumed(tmp_path):
    assert stop_early(tmp_path, kill_before_result=True) == (40, 40)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 40


def test_patience_counts_across_an_interruption(tmp_path):
    losses = {10: 1.0, 20: 2.0, 30: 3.0, 40: 0.5}.get
    fit(tmp_path, 20, [LastCheckpoint(), EarlyStopping(patience=2)], losses)
    assert fit(tmp_path, 60, [LastCheckpoint(), EarlyStopping(patience=2)], losses).global_step == 30


class SendSignal(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.step - 1:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("kinds", [[], [LastCheckpoint]], ids=["without last", "with last"])
@pytest.mark.parametrize("step", [4, 10])  # the second is validated
def test_a_signal_saves_the_step_and_ends_the_process(step, kinds, tmp_path, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop:
        fit(tmp_path, 20, [SendSignal(step), GracefulStop("To continue: resume=here"), *[kind() for kind in kinds]])
    assert stop.value.code == 143
    assert capsys.readouterr().out == f"stopped after {step} steps; everything is saved.\nTo continue: resume=here\n"
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_that_comes_while_processes_agree_is_not_lost(tmp_path):
    stop = GracefulStop("")
    received = [0, signal.SIGTERM]  # by another process, at each of two steps

    def reduce(number: torch.Tensor, reduce_op: str) -> torch.Tensor:
        stop.signal = stop.signal or signal.SIGUSR1
        return torch.tensor(received.pop(0))

    strategy = SimpleNamespace(reduce=reduce)
    trainer = SimpleNamespace(world_size=2, global_step=1, max_steps=9, val_check_batch=1, strategy=strategy)
    trainer.checkpoint_callbacks = [LastCheckpoint()]
    module = SimpleNamespace(device="cpu")
    stop.on_train_batch_end(trainer, module, None, None, 0)
    assert (stop.signal, stop.stopping) == (signal.SIGUSR1, False)
    trainer.global_step = 2
    stop.on_train_batch_end(trainer, module, None, None, 1)
    assert (stop.signal, stop.stopping) == (signal.SIGTERM, True)


# Averaged weights


def test_averaged_weights_are_saved_beside_those_that_training_goes_on_with(tmp_path):
    for folder, max_steps in (("whole", 40), ("parts", 20), ("parts", 40)):
        fit(tmp_path / folder, max_steps, [LastCheckpoint(), EMA(decay=0.5)], accumulate=2)
    contents = [torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True) for run in ("whole", "parts")]
    for content in contents:
        assert content["state_dict"]["weight"] != content["current_model_state"]["weight"]
        assert content["averaging_state"]["n_averaged"] == 40
        assert "ema" not in content["callbacks"]


def sparse() -> torch.Tensor:
    return torch.ones(1).to_sparse()


HOSTILE_AVERAGES = {
    "no current weights": lambda content: content.pop("current_model_state"),
    "no averaging state": lambda content: content.pop("averaging_state"),
    "a list": lambda content: content.update(current_model_state=[1]),
    "another name": lambda content: content["current_model_state"].update(other=torch.ones(1)),
    "another shape": lambda content: content["current_model_state"].update(weight=torch.ones(2)),
    "a large shape without storage": lambda content: content["current_model_state"].update(weight=torch.ones(1).expand(10**9)),
    "another type": lambda content: content["current_model_state"].update(weight=torch.ones(1, dtype=torch.float64)),
    "not finite": lambda content: content["current_model_state"].update(weight=torch.tensor([math.nan])),
    "sparse": lambda content: content["current_model_state"].update(weight=sparse()),
    "text": lambda content: content["current_model_state"].update(weight="text"),
    "a fractional count": lambda content: content["averaging_state"].update(n_averaged=torch.tensor(1.5)),
}


@pytest.mark.parametrize("change", HOSTILE_AVERAGES.values(), ids=list(HOSTILE_AVERAGES))
def test_hostile_averages_are_refused(change, tmp_path):
    fit(tmp_path, 10, [LastCheckpoint(), EMA(decay=0.5)])
    edit(tmp_path, change)
    with pytest.raises(UserError, match=r"^checkpoint = \(state of ema\): "):
        fit(tmp_path, 20, [LastCheckpoint(), EMA(decay=0.5)])


# What is shown


def test_throughput_counts_training_alone(monkeypatch):
    now, logged = [100.0], []
    monkeypatch.setattr(throughput, "perf_counter", lambda: now[0])
    callback = Throughput()
    trainer = SimpleNamespace(world_size=2, log_every_n_steps=2, accumulate_grad_batches=1, global_step=0)
    trainer.datamodule = SimpleNamespace(characters_per_id=1.0)
    module = SimpleNamespace(log=lambda name, value, prog_bar: logged.append((name, value)))
    batch = (torch.zeros(3, 5), None)
    callback.on_train_start(trainer, module)
    now[0] += 1000  # before the first batch
    for step in range(4):
        callback.on_train_batch_start(trainer, module, batch, step)
        now[0] += 0.5
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, batch, step)
        if step == 2:
            callback.on_validation_start(trainer, module)
            now[0] += 1000  # the validation, and what follows it
    assert logged == [("perf/chars_per_second", 60.0), ("perf/chars_per_second", 60.0)]  # 2 x 15 characters in half a second
    assert (callback.characters, callback.seconds, callback.elapsed) == (120, 2.0, 2002.0)


def test_progress_lines_tell_step_and_loss(tmp_path, capsys):
    fit(tmp_path, 20, [ProgressLines()], lambda step: step / 8)
    assert capsys.readouterr().out == "step 10 of 20  val/loss 1.2500\nstep 20 of 20  val/loss 2.5000\n"


def set_width(monkeypatch, columns: int) -> None:
    """Let standard output look like a terminal of so many columns to tqdm."""
    monkeypatch.setattr("sys.stdout.fileno", lambda: 1)
    monkeypatch.setattr("os.get_terminal_size", lambda *_: os.terminal_size((columns, 24)))


@pytest.mark.parametrize("columns", [80, 140])
def test_progress_bar_is_one_line_that_counts_the_steps_of_the_whole_run(tmp_path, capsys, monkeypatch, columns):
    set_width(monkeypatch, columns)
    fit(tmp_path, 10, [LastCheckpoint()])
    fit(tmp_path, 300, [LastCheckpoint(), ProgressBar()], every=300, accumulate=2)
    out = capsys.readouterr().out
    lines = out.removesuffix("\n").split("\r")
    assert "\n" not in "".join(lines)  # and the cursor ends at the beginning of the next line
    assert lines[1].startswith("10/300 ")
    assert re.fullmatch(r"300/300 \S+ ETA 00:00  val 0\.003", lines[-1])
    assert {len(line) for line in lines[1:]} == {columns - 1}


def test_narrow_progress_bar_leaves_out_numbers_and_is_erased_if_asked(tmp_path, capsys, monkeypatch):
    set_width(monkeypatch, 50)
    fit(tmp_path, 10, [ProgressBar("1 of 2  ", lambda: "all done in 1:00", leave=False)], every=5)
    *lines, erased, end = capsys.readouterr().out.split("\r")
    assert lines[-1].startswith("1 of 2  10/10 ")
    assert lines[-1].endswith("  all done in 1:00")
    assert len(lines[-1]) == 49
    assert (erased.strip(), end) == ("", "")


def test_progress_bar_ends_before_a_stopped_run_says_so(tmp_path, capsys):
    with pytest.raises(SystemExit):
        fit(tmp_path, 20, [SendSignal(3), GracefulStop("go on"), ProgressBar()])
    *_, line, stopped, advice = capsys.readouterr().out.splitlines()
    assert line.split("\r")[-1].startswith("3/20 ")
    assert (stopped[:13], advice) == ("stopped after", "go on")
