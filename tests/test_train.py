"""Single runs: what they leave, what they log, what they print, and what may be typed to start one."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sample
from conftest import ROOT, TINY, history, read_checkpoint, read_result
from gpt.checkpoint import load
from gpt.cli.main import compose_config
from gpt.cli.overrides import name_run, parse_overrides, quote_paths
from gpt.cli.summary import next_commands, program
from gpt.cli.sweep import Sweep
from gpt.config import RunConfig
from gpt.data import ShuffledWindows
from gpt.evaluate import evaluate
from gpt.machine import has_compiler
from gpt.run import read_config
from gpt.train import pretraining_parts

no_compiler = pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler, which torch.compile needs")


def test_run_folder_explains_itself(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {"config.yaml", "run.json", "checkpoints", "metrics.csv", "sample.txt", "result.json"}
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {
        "best.safetensors",
        "last.safetensors",
    }
    assert read_checkpoint(trained / "checkpoints/best.safetensors").keys() == {"gpt", "state_dict"}
    result = read_result(trained)
    assert (result["step"], result["best_step"]) == (4, 4)
    assert result["best_val_loss"] == result["final_val_loss"]
    assert result["parameters"] == sum(parameter.numel() for parameter in load(trained)[0].parameters())
    assert result["seconds"] > 0
    run = json.loads((trained / "run.json").read_text())
    assert run["versions"]["torch"] == torch.__version__
    assert len(run["text_sha256"]) == 64
    assert run["overrides"].items() >= {"model": "tiny", "model.n_embd": 16, "trainer.max_steps": 4}.items()
    assert not [key for key in run["overrides"] if key.startswith("hydra")]
    assert "n_embd: 16" in (trained / "config.yaml").read_text()
    assert "${" not in (trained / "config.yaml").read_text()


def test_lines_are_counted_in_optimizer_steps_when_stdout_is_no_terminal(succeed):
    out = succeed("trainer.max_steps=3", "trainer.accumulate_grad_batches=2", "trainer.val_check_interval=1")
    lines = [line.split("  ")[0] for line in out.splitlines() if line.startswith("step ")]
    assert lines == ["step 1 of 3", "step 2 of 3", "step 3 of 3"]
    assert "Epoch" not in out


def test_tensorboard_and_csv_have_the_curves(succeed):
    every = ["trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
    succeed("trainer.max_steps=5", *every, "hydra.run.dir=run")
    events = EventAccumulator("run")
    events.Reload()
    wanted = {"train/loss", "train/grad_norm", "lr", "perf/chars_per_second", "val/loss", "val/bits_per_char"}
    assert wanted <= set(events.Tags()["scalars"])
    losses = events.Scalars("val/loss")
    assert len(losses) == 3  # after 2, 4 and, though 2 does not divide it, 5 steps
    assert events.Scalars("val/bits_per_char")[-1].value == pytest.approx(losses[-1].value / math.log(2))
    written = events.Tensors("sample/temperature 0.8/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert written == "    " + Path("run/sample.txt").read_text().replace("\n", "\n    ")
    rows = history("run")
    assert [float(row["val/loss"]) for row in rows if row["val/loss"]][-1] == pytest.approx(losses[-1].value)
    assert sum(bool(row["train/loss"]) for row in rows) == 5


def losses(succeed, folder: str, *overrides: str) -> list[tuple[str, str]]:
    succeed("trainer.max_steps=4", "trainer.log_every_n_steps=1", f"hydra.run.dir={folder}", *overrides)
    return [(row["train/loss"], row["val/loss"]) for row in history(folder)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_same_seed_gives_identical_losses(succeed, optimizer, precision):
    overrides = [f"optimizer={optimizer}", "model.dropout=0.1", f"trainer.precision={precision}"]
    first = losses(succeed, "a", *overrides)
    assert losses(succeed, "b", *overrides) == first
    assert losses(succeed, "c", *overrides, "seed=0") != first
    # more validations, which are no part of training, change nothing
    with_more = losses(succeed, "d", *overrides, "trainer.val_check_interval=1")
    assert [train for train, _ in with_more if train] == [train for train, _ in first if train]


FAST = ["trainer.precision=bf16-mixed", pytest.param("trainer.compile=true", marks=no_compiler)]


@pytest.mark.parametrize("fast", FAST)
def test_fast_paths_learn_what_float32_learns(succeed, fast):
    """On Tiny Shakespeare, step by step, within 1 %."""
    more = [
        "data.path=null",
        "data.batch_size=32",
        "trainer.max_steps=200",
        "optimizer=adamw",
        "callbacks.samples=null",
    ]
    reference = losses(succeed, "exact", "trainer.precision=32-true", "trainer.compile=false", *more)
    for (train, val), (fast_train, fast_val) in zip(
        reference, losses(succeed, "fast", fast, *more), strict=True
    ):
        assert float(fast_train or fast_val) == pytest.approx(float(train or val), rel=0.01)
    assert float(reference[-1][1]) < 3.5


def test_averaged_weights_are_validated_and_saved(succeed, precision):
    ema = ["callbacks=ema", "callbacks.ema.decay=0.5", f"trainer.precision={precision}"]
    succeed(*ema, "trainer.max_steps=4", "hydra.run.dir=run")
    best, last = (read_checkpoint(Path(f"run/checkpoints/{name}.safetensors")) for name in ("best", "last"))
    trained = {name.removeprefix("model."): now for name, now in last["current_model_state"].items()}
    assert any(not torch.equal(best["state_dict"][name], now) for name, now in trained.items())
    assert evaluate(*load("run"))["val"]["loss"] == read_result("run")["best_val_loss"]


def test_best_and_last_checkpoints_hold_their_own_step(succeed):
    """With a learning rate that ruins the model after some steps, last continues while validation worsens."""
    ruin = ["model/arch=gpt2", "optimizer=adamw", "optimizer.lr=1", "scheduler=constant"]
    succeed(*ruin, "trainer.max_steps=6", "trainer.val_check_interval=1", "hydra.run.dir=run")
    scores = [float(row["val/loss"]) for row in history("run") if row["val/loss"]]
    best, result = scores.index(min(scores)) + 1, read_result("run")
    assert best < 6, "the test needs a run that gets worse"
    assert (result["best_val_loss"], result["best_step"]) == (pytest.approx(min(scores)), best)
    steps = [load(f"run/checkpoints/{name}.safetensors")[2]["step"] for name in ("last", "best")]
    assert steps == [6, best]


KINDS = [["trainer.precision=32-true"], ["trainer.precision=bf16-mixed"]]
KINDS += [pytest.param(["trainer.precision=bf16-mixed", "trainer.compile=true"], marks=no_compiler)]


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_run_of_any_precision_is_evaluated_and_sampled(succeed, capsys, kind):
    succeed(*kind, "trainer.max_steps=4", "hydra.run.dir=run")
    model, tokenizer, metadata = load("run")
    found, result = evaluate(model, tokenizer, metadata), read_result("run")
    assert found["val"]["loss"] == result["best_val_loss"] == result["final_val_loss"]
    bits = pytest.approx(found["val"]["loss"] / math.log(2))
    assert found["val"]["bits_per_char"] == found["val"]["bits_per_byte"] == bits
    assert found["train"]["loss"] > 0
    assert evaluate(*load("run/checkpoints/last.safetensors")) == found  # a file as well as a folder

    # by hand, window by window: the mean over every position, in float32 whatever the precision of training
    text = Path(metadata["config"]["data"]["path"]).read_text(encoding="utf-8")
    ids = tokenizer.encode(text[int(len(text) * 0.9) :])
    losses = []
    for start in range(0, len(ids) - 16, 16):
        logits, targets = model(ids[None, start : start + 16]), ids[start + 1 : start + 17]
        losses += torch.nn.functional.cross_entropy(logits[0], targets, reduction="none").tolist()
    assert len(losses) == 53 * 16
    assert result["final_val_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)

    texts = []
    for _ in range(2):
        sample.main(["run", "--prompt", "O", "--tokens", "30", "--seed", "1", "--exact"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0]) == 32


def test_nothing_set_means_the_best_of_the_machine(call, text):
    """With trainer.precision=auto, the run says what was chosen and why, and ends as any other."""
    left_out = ("trainer.precision", "trainer.accelerator")
    settings = [setting for setting in TINY if not setting.startswith(left_out)]
    code, out, err = call(*settings, f"data.path={text}", "trainer.max_steps=4", "hydra.run.dir=run")
    assert code == 0, err
    assert f"precision {read_config(Path('run'))['trainer']['precision']}: " in out
    assert evaluate(*load("run"))["val"]["loss"] == read_result("run")["final_val_loss"]


@pytest.mark.parametrize("steps", [25, 30])
def test_every_logged_row_holds_the_numbers_of_its_step(succeed, steps):
    """Also the last one, where log_every_n_steps does not divide max_steps."""
    names = ("train/loss", "lr", "train/grad_norm", "val/loss")

    def rows(interval: int) -> dict[tuple[str, str], str]:
        settings = [f"trainer.max_steps={steps}", f"trainer.log_every_n_steps={interval}"]
        succeed(*settings, "trainer.val_check_interval=10", f"hydra.run.dir=every{interval}")
        return {
            (row["step"], name): row[name]
            for row in history(f"every{interval}")
            for name in names
            if row[name]
        }

    some, every = rows(10), rows(1)
    assert some.items() <= every.items()
    assert len([key for key in some if key[1] == "lr"]) == steps // 10


def test_training_loss_is_the_mean_over_accumulated_batches(succeed):
    """Two batches of two windows make one step: the loss is the mean over all four."""
    accumulate = ["data.batch_size=2", "trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=1"]
    succeed(*accumulate, "trainer.max_steps=1", "trainer.precision=32-true", "hydra.run.dir=run")
    config = RunConfig.from_dict(read_config(Path("run")))
    data, make_module = pretraining_parts(config, None, None)
    windows = ShuffledWindows(data.train_ids, 16, 2, config.seed, length=2)
    torch.manual_seed(config.seed)
    module = make_module(config)
    expected = sum(module.loss(windows.batch(number)).item() for number in range(2)) / 2
    assert float(history("run")[0]["train/loss"]) == pytest.approx(expected, abs=1e-6)


def test_report_has_a_model_write_that_took_no_samples(succeed):
    out = succeed("callbacks.samples=null", "trainer.max_steps=1", "hydra.run.dir=run")
    assert not Path("run/sample.txt").exists()
    assert "what the model writes after 1 steps (temperature 0.8):\n\n" in out


def test_report_says_what_wrote_the_sample_and_suggests_what_works(succeed, monkeypatch):
    out = succeed("trainer.max_steps=1", "callbacks.samples.prompt=JULIET", "hydra.run.dir=outputs/run")
    assert "after 1 steps (temperature 0.8, prompt 'JULIET'):\n\nJULIET" in out
    commands = [line.strip() for line in out.split("next:\n")[1].splitlines() if "activate" not in line]
    assert commands == [
        "python scripts/sample.py outputs/run",  # and no prompt that another text may not know
        "python scripts/evaluate.py outputs/run",
        "python scripts/export_html.py outputs/run  # a page that writes, for any browser",
        "tensorboard --logdir outputs",
    ]
    for path in Path("outputs/run/checkpoints").iterdir():
        path.unlink()
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts" / "train.py")])
    config = RunConfig.from_dict(read_config(Path("outputs/run")))
    assert [command.split()[0] for command in next_commands(Path("outputs/run"), config)][-1:] == [
        "tensorboard"
    ]
    assert program("sample") == f"python {ROOT / 'scripts' / 'sample.py'}"


def test_run_needs_neither_callbacks_nor_logger(call, text):
    settings = [setting for setting in TINY if not setting.startswith("callbacks")]
    settings += [f"data.path={text}", "~callbacks", "~logger", "trainer.max_steps=1", "hydra.run.dir=run"]
    code, out, err = call(*settings)
    assert code == 0, err
    assert "after 1 steps" in out
    names = {"config.yaml", "run.json", "result.json", ".lock", ".lock.pid"}
    assert {path.name for path in Path("run").iterdir()} == names


NAMES = [
    ("model=tiny model/arch=gpt1 seed=2", "tiny_arch-gpt1_seed-2"),
    ("model=tiny", "tiny"),
    ("experiment=best model=tiny trainer.max_steps=1e3", "best_model-tiny_max_steps-1000"),
    ("name=日本 ablation=gelu optimizer.betas=[0.9,0.95]", "日本_ablation-gelu_betas-0.9-0.95"),
    ("data.path='a/b.txt' hydra.run.dir=y ~logger callbacks.samples=null", "small"),
    ("callbacks=ema callbacks.ema.decay=0.5 logger=csv", "small_callbacks-ema_decay-0.5"),
    (
        "model.n_embd=128 trainer.max_steps=1000000 data.batch_size=16 ablation=learned_positions",
        "small_n_embd-128_max_steps-1000000_batch_size-16",  # as many as fit
    ),
]


@pytest.mark.parametrize(("arguments", "name"), NAMES, ids=[name for _, name in NAMES])
def test_folder_is_named_after_what_was_typed(arguments, name):
    overrides = quote_paths(arguments.split())
    chosen = compose_config(overrides).name
    assert name_run(f"START_{chosen}", chosen, parse_overrides(overrides)) == f"START_{name}"


def test_default_folder_has_the_date_in_front_and_is_resumed_by_its_name(succeed, call):
    out = succeed("trainer.max_steps=1e0", "model/arch=gpt1")
    (folder,) = Path("outputs").iterdir()
    name = r"\d{4}(-\d\d){2}_\d\d(-\d\d){2}_tiny_n_embd-16_context_length-16_max_steps-1_arch-gpt1"
    assert re.fullmatch(name, folder.name)
    assert f"run folder: {folder}" in out
    code, out, err = call(f"resume={folder}", "trainer.max_steps=2")
    assert code == 0, err
    assert "after 2 steps" in out


def test_folder_that_is_taken_gets_a_number(tmp_path):
    taken = tmp_path / "new" / "run"
    assert [Sweep().begin(taken, must_be_new=True) for _ in range(2)] == [taken, tmp_path / "new" / "run-2"]


def test_runs_started_together_have_their_own_folders(tmp_path, text):
    command = [
        sys.executable,
        str(ROOT / "scripts/train.py"),
        *TINY,
        f"data.path={text}",
        "trainer.max_steps=1",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    runs = [subprocess.Popen(command, cwd=tmp_path, **pipes) for _ in range(2)]
    outputs = [run.communicate(timeout=120)[0].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert len(list(tmp_path.glob("outputs/*/result.json"))) == 2
