import csv
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
from conftest import ROOT, TINY
from gpt.checkpoint import load


def test_the_run_folder_explains_itself(trained):
    assert {path.name for path in trained.iterdir() if "tfevents" not in path.name} >= {
        "config.yaml",
        "run.json",
        "checkpoints",
        "metrics.csv",
        "sample.txt",
        "result.json",
    }
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    result = json.loads((trained / "result.json").read_text())
    assert (result["step"], result["best_step"]) == (4, 4)
    assert result["best_val_loss"] == result["final_val_loss"]
    assert result["parameters"] == sum(p.numel() for p in load(trained / "checkpoints" / "best.ckpt")[0].parameters())
    assert result["seconds"] > 0
    run = json.loads((trained / "run.json").read_text())
    assert run["versions"]["torch"] == torch.__version__
    assert len(run["text_sha256"]) == 64
    assert "n_embd: 16" in (trained / "config.yaml").read_text()
    assert "${" not in (trained / "config.yaml").read_text()


def test_where_nothing_can_be_drawn_there_are_lines_and_no_bar(call, text):
    code, out, err = call(*TINY, f"data.path={text}", "trainer.max_steps=2", "trainer.val_check_interval=1")
    assert code == 0, err
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("step ")] == ["step 1 of 2", "step 2 of 2"]
    assert "Epoch" not in out + err


def test_tensorboard_and_csv_have_the_curves(call, text):
    code, _, err = call(
        *TINY,
        f"data.path={text}",
        "trainer.max_steps=5",
        "trainer.val_check_interval=2",
        "trainer.log_every_n_steps=1",
        "hydra.run.dir=run",
    )
    assert code == 0, err
    events = EventAccumulator("run")
    events.Reload()
    wanted = {"train/loss", "train/grad_norm", "lr", "perf/chars_per_second", "val/loss", "val/bits_per_char"}
    assert wanted <= set(events.Tags()["scalars"])
    steps = [event.step for event in events.Scalars("val/loss")]
    assert len(steps) == 3  # after 2, 4 and, though 2 does not divide it, 5 steps
    loss, bits = events.Scalars("val/loss")[-1].value, events.Scalars("val/bits_per_char")[-1].value
    assert bits == pytest.approx(loss / 0.6931472, rel=1e-5)
    sample = events.Tensors("sample/temperature 0.8/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert sample == "    " + Path("run/sample.txt").read_text().replace("\n", "\n    ")
    with open("run/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val/loss"]) for row in rows if row["val/loss"]][-1] == pytest.approx(loss)
    assert sum(bool(row["train/loss"]) for row in rows) == 5


def losses(call, folder: str, *overrides: str) -> list[tuple[str, str]]:
    code, _, err = call(*TINY, "trainer.max_steps=4", "trainer.log_every_n_steps=1", f"hydra.run.dir={folder}", *overrides)
    assert code == 0, err
    with open(f"{folder}/metrics.csv", newline="") as file:
        return [(row["train/loss"], row["val/loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_same_seed_same_losses_to_the_last_digit(call, text, optimizer):
    overrides = [f"data.path={text}", f"optimizer={optimizer}", "model.dropout=0.1"]
    first = losses(call, "a", *overrides)
    assert losses(call, "b", *overrides) == first
    assert losses(call, "c", *overrides, "seed=0") != first
    # what runs beside training does not change it
    with_more = losses(call, "d", *overrides, "trainer.val_check_interval=1")
    assert [train for train, _ in with_more if train] == [train for train, _ in first if train]


no_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")


@pytest.mark.parametrize("fast", ["trainer.precision=bf16-mixed", pytest.param("trainer.compile=true", marks=no_compiler)])
def test_the_fast_paths_learn_what_float32_learns(call, fast):
    """On Tiny Shakespeare, step by step, within 1 %."""
    runs = [["trainer.precision=32-true", "trainer.compile=false"], [fast]]
    steps = ["trainer.max_steps=200", "optimizer=adamw", "callbacks.samples=null"]
    reference, other = (losses(call, f"run{number}", *run, *steps) for number, run in enumerate(runs))
    for (train, val), (other_train, other_val) in zip(reference, other, strict=True):
        assert float(other_train or other_val) == pytest.approx(float(train or val), rel=0.01)
    assert float(reference[-1][1]) < 3.5


def test_averaged_weights_are_what_is_validated_and_saved(call, text):
    overrides = [f"data.path={text}", "callbacks=ema", "callbacks.ema.decay=0.5", "trainer.max_steps=4", "hydra.run.dir=run"]
    code, _, err = call(*TINY, *overrides)
    assert code == 0, err
    saved = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    assert any(not torch.equal(saved["state_dict"][name], now) for name, now in saved["current_model_state"].items())
    assert evaluate.evaluate("run")["val"]["loss"] == json.loads(Path("run/result.json").read_text())["best_val_loss"]


def test_everything_is_counted_in_optimizer_steps(call, text):
    code, out, err = call(
        *TINY,
        f"data.path={text}",
        "trainer.max_steps=3",
        "trainer.accumulate_grad_batches=2",
        "trainer.val_check_interval=1",
        "hydra.run.dir=r",
    )
    assert code == 0, err
    assert [line.split()[1] for line in out.splitlines() if line.startswith("step ")] == ["1", "2", "3"]


def test_best_and_last_are_what_they_say(call, text):
    """A learning rate that ruins the model after some steps: last goes on while validation worsens."""
    code, _, err = call(
        *TINY,
        f"data.path={text}",
        "model/arch=gpt2",
        "optimizer=adamw",
        "optimizer.lr=1",
        "scheduler=constant",
        "trainer.max_steps=6",
        "trainer.val_check_interval=1",
        "hydra.run.dir=run",
    )
    assert code == 0, err
    with open("run/metrics.csv", newline="") as file:
        scores = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
    result = json.loads(Path("run/result.json").read_text())
    best = scores.index(min(scores)) + 1
    assert best < 6, "the test needs a run that gets worse"
    assert (result["best_val_loss"], result["best_step"]) == (pytest.approx(min(scores)), best)
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 6
    assert torch.load("run/checkpoints/best.ckpt", weights_only=True)["global_step"] == best


def test_evaluate_finds_the_loss_that_training_found(trained):
    found = evaluate.evaluate(str(trained))
    assert found["val"]["loss"] == json.loads((trained / "result.json").read_text())["best_val_loss"]
    assert found["val"]["bits_per_char"] == found["val"]["bits_per_byte"] == pytest.approx(found["val"]["loss"] / math.log(2))
    assert found["train"]["loss"] > 0
    assert evaluate.evaluate(str(trained / "checkpoints" / "last.ckpt"))["val"] == found["val"]  # a file as well as a folder


def test_validation_loss_is_the_mean_over_every_position(trained):
    """By hand, window by window: 860 characters of validation text make 53 windows, a full batch of 32 and a rest."""
    model, tokenizer, card = load(trained / "checkpoints" / "best.ckpt")
    text = Path(card["config"]["data"]["path"]).read_text(encoding="utf-8")
    ids = tokenizer.encode(text[int(len(text) * 0.9) :])
    losses = []
    for start in range(0, len(ids) - 16, 16):
        logits = model(ids[None, start : start + 16])
        losses += torch.nn.functional.cross_entropy(logits[0], ids[start + 1 : start + 17], reduction="none").tolist()
    assert len(losses) == 53 * 16
    expected = sum(losses) / len(losses)
    assert json.loads((trained / "result.json").read_text())["final_val_loss"] == pytest.approx(expected, abs=1e-6)


def test_a_run_that_diverges_is_stopped_with_one_line(call, text):
    code, out, err = call(
        *TINY, f"data.path={text}", "optimizer=adamw", "optimizer.lr=1e30", "trainer.max_steps=50", "hydra.run.dir=run"
    )
    assert code == 2
    assert "not finite at step" in err
    assert "Traceback" not in out + err
    assert not Path("run/result.json").exists()


def test_early_stopping_stops(call, text):
    overrides = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer=adamw", "optimizer.lr=1"]
    code, _, err = call(*TINY, f"data.path={text}", *overrides, "trainer.max_steps=50", "trainer.val_check_interval=1")
    assert code == 0, err
    assert json.loads(next(Path("outputs").glob("*/result.json")).read_text())["step"] < 50


def test_a_callback_can_be_left_out(call, text):
    code, _, err = call(*TINY, f"data.path={text}", "callbacks.samples=null", "trainer.max_steps=1", "hydra.run.dir=run")
    assert code == 0, err
    assert not Path("run/sample.txt").exists()


def test_a_run_needs_neither_callbacks_nor_logger(call, text):
    code, out, err = call(*TINY[:-1], f"data.path={text}", "~callbacks", "~logger", "trainer.max_steps=1")
    assert code == 0, err
    assert "after 1 steps" in out


def test_steps_may_be_written_as_1e1(call, text):
    code, out, _ = call(*TINY, f"data.path={text}", "trainer.max_steps=1e1")
    assert code == 0
    assert "after 10 steps" in out


def test_two_runs_started_together_do_not_meet(tmp_path, text):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *TINY, f"data.path={text}", "trainer.max_steps=1"]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [run.communicate(timeout=120)[0].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert len(list((tmp_path / "outputs").glob("*/result.json"))) == 2
