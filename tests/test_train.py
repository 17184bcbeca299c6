import csv
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import sample
from conftest import ROOT, TINY
from gpt.checkpoint import load
from gpt.cli.naming import name_run
from gpt.cli.overrides import compose, parse_overrides, quote_arguments
from gpt.cli.report import next_commands, script
from gpt.config import RunConfig, read_config_file
from gpt.data import CharData, DataConfig, ShuffledWindows
from gpt.hardware import has_compiler
from gpt.runs.folder import unused_folder
from gpt.runs.train import make_module
from gpt.settings import build


def test_run_folder_explains_itself(trained):
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
    assert run["overrides"]["model"] == "tiny"
    assert (run["overrides"]["model.n_embd"], run["overrides"]["trainer.max_steps"]) == (16, 4)
    assert not [key for key in run["overrides"] if key.startswith("hydra")]
    assert "n_embd: 16" in (trained / "config.yaml").read_text()
    assert "${" not in (trained / "config.yaml").read_text()


def test_plain_progress_lines_when_stdout_is_not_a_terminal(call, text):
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
def test_same_seed_gives_identical_losses(call, text, optimizer, precision):
    overrides = [f"data.path={text}", f"optimizer={optimizer}", "model.dropout=0.1", f"trainer.precision={precision}"]
    first = losses(call, "a", *overrides)
    assert losses(call, "b", *overrides) == first
    assert losses(call, "c", *overrides, "seed=0") != first
    # More validations, which run beside training, change nothing
    with_more = losses(call, "d", *overrides, "trainer.val_check_interval=1")
    assert [train for train, _ in with_more if train] == [train for train, _ in first if train]


no_compiler = pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler, which torch.compile needs")


@pytest.mark.parametrize("fast", ["trainer.precision=bf16-mixed", pytest.param("trainer.compile=true", marks=no_compiler)])
def test_fast_paths_learn_what_float32_learns(call, fast):
    """On Tiny Shakespeare, step by step, within 1 %."""
    runs = [["trainer.precision=32-true", "trainer.compile=false"], [fast]]
    steps = ["trainer.max_steps=200", "optimizer=adamw", "callbacks.samples=null"]
    reference, other = (losses(call, f"run{number}", *run, *steps) for number, run in enumerate(runs))
    for (train, val), (other_train, other_val) in zip(reference, other, strict=True):
        assert float(other_train or other_val) == pytest.approx(float(train or val), rel=0.01)
    assert float(reference[-1][1]) < 3.5


def test_averaged_weights_are_validated_and_saved(call, text, precision):
    overrides = [f"data.path={text}", "callbacks=ema", "callbacks.ema.decay=0.5", "trainer.max_steps=4", "hydra.run.dir=run"]
    code, _, err = call(*TINY, *overrides, f"trainer.precision={precision}")
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


def test_best_and_last_checkpoints_hold_their_own_step(call, text):
    """With a learning rate that ruins the model after some steps, last.ckpt goes on while validation worsens."""
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


@pytest.fixture
def trained_in(call, text, precision) -> Path:
    """The folder of a run of four steps in each precision."""
    settings = [*TINY, f"data.path={text}", "trainer.max_steps=4", "hydra.run.dir=run", f"trainer.precision={precision}"]
    code, _, err = call(*settings)
    assert code == 0, err
    return Path("run").resolve()


def test_evaluate_repeats_the_loss_of_training(trained_in):
    found = evaluate.evaluate(str(trained_in))
    assert found["val"]["loss"] == json.loads((trained_in / "result.json").read_text())["best_val_loss"]
    assert found["val"]["bits_per_char"] == found["val"]["bits_per_byte"] == pytest.approx(found["val"]["loss"] / math.log(2))
    assert found["train"]["loss"] > 0
    assert evaluate.evaluate(str(trained_in / "checkpoints" / "last.ckpt"))["val"] == found["val"]  # a file as well as a folder


@pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler, which torch.compile needs")
def test_evaluate_repeats_the_loss_of_a_compiled_run(call, text):
    settings = [*TINY, f"data.path={text}", "trainer.max_steps=2", "hydra.run.dir=run", "trainer.precision=bf16-mixed"]
    assert call(*settings, "trainer.compile=true")[0] == 0
    assert evaluate.evaluate("run")["val"]["loss"] == json.loads(Path("run/result.json").read_text())["final_val_loss"]


def test_sampling_works_from_a_run_of_any_precision(trained_in, capsys):
    sample.main([str(trained_in), "--prompt", "O", "--tokens", "30", "--seed", "1", "--exact"])
    first = capsys.readouterr().out
    sample.main([str(trained_in), "--prompt", "O", "--tokens", "30", "--seed", "1", "--exact"])
    assert capsys.readouterr().out == first
    assert len(first) == 32


def test_validation_loss_is_the_mean_over_every_position(trained_in):
    """By hand, window by window: 860 characters of validation text make 53 windows, a full batch of 32 and a rest.

    The loss is computed in float32, in whatever precision the model was trained.
    """
    model, tokenizer, metadata = load(trained_in / "checkpoints" / "best.ckpt")
    text = Path(metadata["config"]["data"]["path"]).read_text(encoding="utf-8")
    ids = tokenizer.encode(text[int(len(text) * 0.9) :])
    losses = []
    for start in range(0, len(ids) - 16, 16):
        logits = model(ids[None, start : start + 16])
        losses += torch.nn.functional.cross_entropy(logits[0], ids[start + 1 : start + 17], reduction="none").tolist()
    assert len(losses) == 53 * 16
    expected = sum(losses) / len(losses)
    assert json.loads((trained_in / "result.json").read_text())["final_val_loss"] == pytest.approx(expected, abs=1e-6)


def test_nothing_set_means_the_best_of_the_machine(call, text):
    """With trainer.precision=auto, the run says what was chosen and why, and ends as any other."""
    settings = [setting for setting in TINY if not setting.startswith(("trainer.precision", "trainer.accelerator"))]
    code, out, err = call(*settings, f"data.path={text}", "trainer.max_steps=4", "hydra.run.dir=run")
    assert code == 0, err
    chosen = yaml.safe_load(Path("run/config.yaml").read_text())["trainer"]["precision"]
    assert f"precision {chosen}: " in out
    assert evaluate.evaluate("run")["val"]["loss"] == json.loads(Path("run/result.json").read_text())["final_val_loss"]


@pytest.mark.parametrize("steps", [25, 30])
def test_every_logged_row_holds_the_numbers_of_its_step(call, text, steps):
    """Also the last one, where log_every_n_steps does not divide max_steps."""
    settings = [*TINY, f"data.path={text}", "trainer.log_every_n_steps=10", "trainer.val_check_interval=10"]
    assert call(*settings, f"trainer.max_steps={steps}", "hydra.run.dir=some")[0] == 0
    assert call(*settings, f"trainer.max_steps={steps}", "trainer.log_every_n_steps=1", "hydra.run.dir=all")[0] == 0

    def rows(folder: str) -> dict[tuple[str, str], str]:
        with open(f"{folder}/metrics.csv", newline="") as file:
            return {
                (row["step"], key): value
                for row in csv.DictReader(file)
                for key, value in row.items()
                if value and key in ("train/loss", "lr", "train/grad_norm", "val/loss")
            }

    some, every = rows("some"), rows("all")
    assert some.items() <= every.items()
    assert len([key for key in some if key[1] == "lr"]) == steps // 10


def test_training_loss_is_the_mean_over_accumulated_batches(call, text):
    """Two batches of two windows make one step: the loss and the gradient are means over all four."""
    settings = [*TINY, f"data.path={text}", "trainer.max_steps=1", "trainer.log_every_n_steps=1", "trainer.precision=32-true"]
    assert call(*settings, "data.batch_size=2", "trainer.accumulate_grad_batches=2", "hydra.run.dir=run")[0] == 0
    config = read_config_file(Path("run/config.yaml"))
    data = CharData(build(DataConfig, config["data"], "data"), 16, config["seed"])
    windows = ShuffledWindows(data.train_ids, 16, 2, config["seed"], length=2)
    torch.manual_seed(0)
    module = make_module(RunConfig.from_dict(config), data)
    expected = sum(module.loss(windows.batch(number)).item() for number in range(2)) / 2
    with open("run/metrics.csv", newline="") as file:
        assert float(next(csv.DictReader(file))["train/loss"]) == pytest.approx(expected, abs=1e-6)


def test_diverged_run_ends_with_one_line(call, text):
    code, out, err = call(
        *TINY,
        f"data.path={text}",
        "optimizer=adamw",
        "optimizer.lr=1e5",
        "scheduler.warmup_ratio=0",
        "trainer.gradient_clip_val=0",
        "trainer.max_steps=50",
        "hydra.run.dir=run",
    )
    assert code == 2
    assert "not finite at step" in err
    assert "Traceback" not in out + err
    assert not Path("run/result.json").exists()


def test_early_stopping_ends_the_run(call, text):
    overrides = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optimizer=adamw", "optimizer.lr=1"]
    code, _, err = call(*TINY, f"data.path={text}", *overrides, "trainer.max_steps=50", "trainer.val_check_interval=1")
    assert code == 0, err
    assert json.loads(next(Path("outputs").glob("*/result.json")).read_text())["step"] < 50


def test_callback_can_be_left_out(call, text):
    code, out, err = call(*TINY, f"data.path={text}", "callbacks.samples=null", "trainer.max_steps=1", "hydra.run.dir=run")
    assert code == 0, err
    assert not Path("run/sample.txt").exists()
    assert "what the model writes after 1 steps (temperature 0.8):\n\n" in out  # the report has it write nevertheless


def test_report_says_what_wrote_the_sample_and_suggests_what_works(call, text, monkeypatch):
    settings = [*TINY, f"data.path={text}", "trainer.max_steps=1", "callbacks.samples.prompt=JULIET", "hydra.run.dir=outputs/run"]
    code, out, err = call(*settings)
    assert code == 0, err
    assert "after 1 steps (temperature 0.8, prompt 'JULIET'):\n\nJULIET" in out
    commands = [line.strip() for line in out.split("next:\n")[1].splitlines() if "activate" not in line]
    assert commands == [
        "python scripts/sample.py outputs/run",  # and no prompt that another text may not know
        "python scripts/evaluate.py outputs/run",
        "python scripts/export_html.py outputs/run  # a page that writes, for any browser",
        "tensorboard --logdir outputs",
    ]
    Path("outputs/run/checkpoints/best.ckpt").unlink()
    Path("outputs/run/checkpoints/last.ckpt").unlink()
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts" / "train.py")])
    config = RunConfig.from_dict(read_config_file(Path("outputs/run/config.yaml")))
    assert [command.split()[0] for command in next_commands(Path("outputs/run"), config)][-1:] == ["tensorboard"]
    assert script("sample") == str(ROOT / "scripts" / "sample.py")


def test_run_needs_neither_callbacks_nor_logger(call, text):
    settings = [setting for setting in TINY if not setting.startswith("callbacks")]
    code, out, err = call(*settings, f"data.path={text}", "~callbacks", "~logger", "trainer.max_steps=1", "hydra.run.dir=run")
    assert code == 0, err
    assert "after 1 steps" in out
    assert {path.name for path in Path("run").iterdir()} == {"config.yaml", "run.json", "result.json", ".lock", ".lock.pid"}


def test_steps_may_be_written_as_1e1(call, text):
    code, out, _ = call(*TINY, f"data.path={text}", "trainer.max_steps=1e1")
    assert code == 0
    assert "after 10 steps" in out


NAMES = [
    (["model=tiny", "model/arch=gpt1", "seed=2"], "START_tiny_arch=gpt1,seed=2"),
    (["model=tiny"], "START_tiny"),
    (["experiment=best", "model=tiny", "trainer.max_steps=1e3"], "START_best_model=tiny,max_steps=1000"),
    (["name=日本", "ablation=gelu", "optimizer.betas=[0.9,0.95]"], "START_日本_ablation=gelu,betas=0.9-0.95"),
    (["data.path='a/b c.txt'", "data.folder=x", "hydra.run.dir=y", "~logger", "callbacks.samples=null"], "START_small"),
    (["callbacks=ema", "callbacks.ema.decay=0.5", "logger=csv", "trainer.devices=2"], "START_small_callbacks=ema,decay=0.5"),
    (
        ["model.n_embd=128", "model.n_layer=4", "trainer.max_steps=100000", "data.batch_size=16", "scheduler.warmup_ratio=0.123"],
        "START_small_n_embd=128,n_layer=4,max_steps=100000,batch_size=16",
    ),
]


@pytest.mark.parametrize(("arguments", "name"), NAMES, ids=[name for _, name in NAMES])
def test_folder_is_named_after_what_was_typed(arguments, name):
    values = dict(compose(arguments := quote_arguments(arguments)).values)
    del values["resume"]
    config = RunConfig.from_dict(values)
    assert name_run(f"START_{config.name}", parse_overrides(arguments), config) == name


def test_default_folder_has_the_date_in_front_and_is_resumed_by_its_name(call, text):
    code, out, err = call(*TINY, f"data.path={text}", "trainer.max_steps=1", "model/arch=gpt1")
    assert code == 0, err
    (folder,) = Path("outputs").iterdir()
    assert re.fullmatch(r"\d{4}(-\d\d){2}_\d\d(-\d\d){2}_tiny_n_embd=16,context_length=16,max_steps=1,arch=gpt1", folder.name)
    assert f"run folder: {folder}" in out
    code, out, err = call(f"resume={folder}", "trainer.max_steps=2")
    assert code == 0, err
    assert "after 2 steps" in out


def test_folder_that_is_taken_gets_a_number(tmp_path):
    taken = tmp_path / "new" / "run"
    with unused_folder(taken) as first, unused_folder(taken) as second:
        assert (first, second) == (taken, tmp_path / "new" / "run-2")
        (first / "kept").touch()
    assert list(tmp_path.rglob("*")) == [tmp_path / "new", taken, taken / "kept"]


def test_runs_started_together_have_their_own_folders(tmp_path, text):
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *TINY, f"data.path={text}", "trainer.max_steps=1"]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [run.communicate(timeout=120)[0].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert len(list((tmp_path / "outputs").glob("*/result.json"))) == 2
