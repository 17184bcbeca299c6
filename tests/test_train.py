"""Single runs: what they leave, log and print, and what may be typed by somebody who knows Hydra."""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from conftest import ROOT, TINY, history, read_events, read_result
from gpt.checkpoint import load
from gpt.cli.main import compose_config
from gpt.cli.overrides import name_run, parse_overrides, quote_paths
from gpt.cli.summary import next_commands, program
from gpt.cli.sweep import Sweep
from gpt.config import RunConfig
from gpt.evaluate import evaluate
from gpt.machine import has_compiler
from gpt.run import read_config

no_compiler = pytest.mark.skipif(not has_compiler("cpu"), reason="no C++ compiler, which torch.compile needs")


def test_run_folder_explains_itself(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {"config.yaml", "run.json", "checkpoints", "metrics.csv", "sample.txt", "result.json"}
    kept = {path.name for path in (trained / "checkpoints").iterdir()}
    assert kept == {"best.safetensors", "last.safetensors"}
    result = read_result(trained)
    assert (result["step"], result["best_step"]) == (4, 4)
    assert result["best_val_loss"] == result["final_val_loss"]
    assert result["parameters"] == sum(parameter.numel() for parameter in load(trained)[0].parameters())
    run = json.loads((trained / "run.json").read_text())
    assert run["versions"]["torch"] == torch.__version__
    assert len(run["text_sha256"]) == 64
    assert run["overrides"].items() >= {"model": "tiny", "model.n_embd": 16, "trainer.max_steps": 4}.items()
    assert not [key for key in run["overrides"] if key.startswith("hydra")]
    assert "n_embd: 16" in (trained / "config.yaml").read_text()
    assert "${" not in (trained / "config.yaml").read_text()


def test_all_counts_in_optimizer_steps(succeed):
    """Of two batches each, here. And stdout is no terminal."""
    every = ["trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "trainer.profiler=simple"]
    out = succeed("trainer.max_steps=5", "trainer.accumulate_grad_batches=2", *every, "hydra.run.dir=run")
    lines = [line.split("  ")[0] for line in out.splitlines() if line.startswith("step ")]
    assert lines == ["step 2 of 5", "step 4 of 5", "step 5 of 5"]
    assert "Epoch 0" not in out
    assert "Profiler Report" in out
    rows = [row for row in history("run") if row["val/loss"]]
    assert [row["step"] for row in rows] == ["1", "3", "4"]  # the last one, though 2 does not divide 5
    shown = [event.value for event in read_events("run").Scalars("val/loss")]
    assert [float(row["val/loss"]) for row in rows] == pytest.approx(shown)
    assert sum(bool(row["train/loss"]) for row in history("run")) == 5


def losses(succeed, folder: str, *overrides: str) -> list[tuple[str, str]]:
    succeed("trainer.max_steps=4", "trainer.log_every_n_steps=1", f"hydra.run.dir={folder}", *overrides)
    return [(row["train/loss"], row["val/loss"]) for row in history(folder)]


def test_another_seed_trains_otherwise_and_more_validations_do_not(succeed):
    first, other = (losses(succeed, f"seed{seed}", "model.dropout=0.1", f"seed={seed}") for seed in (1, 0))
    assert first != other
    more = losses(succeed, "more", "model.dropout=0.1", "seed=1", "trainer.val_check_interval=1")
    assert [train for train, _ in more if train] == [train for train, _ in first if train]
    assert more[-1] == first[-1]


@no_compiler
def test_fast_paths_learn_what_float32_learns(succeed):
    """Compiled, in bfloat16, on Tiny Shakespeare: step by step, within 1 %."""
    more = ["data.path=null", "data.batch_size=32", "trainer.max_steps=200", "optimizer=adamw"]
    more += ["callbacks.samples=null"]
    exact = losses(succeed, "exact", "trainer.precision=32-true", "trainer.compile=false", *more)
    fast = losses(succeed, "fast", "trainer.precision=bf16-mixed", "trainer.compile=true", *more)
    for (train, val), (fast_train, fast_val) in zip(exact, fast, strict=True):
        assert float(fast_train or fast_val) == pytest.approx(float(train or val), rel=0.01)
    assert float(exact[-1][1]) < 3.5
    assert evaluate(*load("fast"))["val"]["loss"] == read_result("fast")["final_val_loss"]


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
    assert not any("sample.py" in command for command in next_commands(Path("outputs/run"), config))
    assert program("sample") == f"python {ROOT / 'scripts' / 'sample.py'}"


def test_run_needs_neither_samples_nor_callbacks_nor_logger(succeed, call, text):
    out = succeed("callbacks.samples=null", "trainer.max_steps=1", "hydra.run.dir=run")
    assert not Path("run/sample.txt").exists()
    assert "what the model writes after 1 steps (temperature 0.8):\n\n" in out  # at the end
    settings = [setting for setting in TINY if not setting.startswith("callbacks")]
    settings += [f"data.path={text}", "~callbacks", "~logger", "trainer.max_steps=1", "hydra.run.dir=bare"]
    code, out, err = call(*settings)
    assert code == 0, err
    assert "after 1 steps" in out
    names = {"config.yaml", "run.json", "result.json", ".lock", ".lock.pid"}
    assert {path.name for path in Path("bare").iterdir()} == names


NAMES = {
    "model=tiny model/arch=gpt1 seed=2": "tiny_arch-gpt1_seed-2",
    "experiment=best model=tiny trainer.max_steps=1e3": "best_model-tiny_max_steps-1000",
    "name=日本 ablation=gelu optimizer.betas=[0.9,0.95]": "日本_ablation-gelu_betas-0.9-0.95",
    "data.path='a/b.txt' hydra.run.dir=y ~logger callbacks.samples=null": "small",
    "callbacks=ema callbacks.ema.decay=0.5 logger=csv": "small_callbacks-ema_decay-0.5",
    "model.n_embd=128 trainer.max_steps=1000000 data.batch_size=16 ablation=learned_positions": (
        "small_n_embd-128_max_steps-1000000_batch_size-16"  # as many as fit
    ),
}


@pytest.mark.parametrize("arguments", NAMES)
def test_folder_is_named_after_what_was_typed(arguments):
    overrides = quote_paths(arguments.split())
    chosen = compose_config(overrides).name
    assert name_run(f"START_{chosen}", chosen, parse_overrides(overrides)) == f"START_{NAMES[arguments]}"


def test_default_folder_has_the_date_in_front_and_is_resumed_by_its_name(succeed):
    out = succeed("trainer.max_steps=1e0", "model/arch=gpt1", "trainer.precision=auto")
    (folder,) = Path("outputs").iterdir()
    name = r"\d{4}(-\d\d){2}_\d\d(-\d\d){2}_tiny_n_embd-16_context_length-16_max_steps-1_arch-gpt1"
    assert re.fullmatch(name, folder.name)
    assert f"run folder: {folder}" in out
    assert f"precision {read_config(folder)['trainer']['precision']}: " in out  # what was chosen, and why
    assert "after 2 steps" in succeed(f"resume={folder}", "trainer.max_steps=2")


def test_runs_started_together_have_their_own_folders(tmp_path):
    taken = tmp_path / "new" / "run"
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda sweep: sweep.begin(taken, must_be_new=True), [Sweep() for _ in range(16)]))
    names = {"run", *(f"run-{number}" for number in range(2, 17))}
    assert {path.name for path in taken.parent.iterdir()} == names


SHOWN = {
    "--help": "Train a GPT: python scripts/train.py [key=value ...]",
    "model=tiny --cfg job --resolve": "name: tiny",
    "--cfg hydra": "output_subdir: null",
    "--info": "Config search path",
    "--hydra-help": "--multirun",
}


@pytest.mark.parametrize("options", SHOWN)
def test_what_hydra_shows_trains_nothing(call, options):
    code, out, err = call(*options.split())
    assert (code, err) == (0, "")
    assert SHOWN[options] in out
    assert list(Path().iterdir()) == []


def test_paths_are_those_where_one_stands_and_may_hold_an_equals_sign(succeed, text):
    """hydra.job.chdir=true moves the run into its folder; the other two change nothing."""
    text.rename("a=b.txt")
    harmless = ["hydra.job.chdir=true", "hydra.verbose=true", "hydra.job.name=x"]
    succeed("data.path=a=b.txt", *harmless, "trainer.max_steps=1", "hydra.run.dir=run=1")
    assert read_result("run=1")["step"] == 1
    assert sorted(path.name for path in Path().iterdir()) == ["a=b.txt", "run=1"]
    assert Path(read_config(Path("run=1"))["data"]["path"]).name == "a=b.txt"
