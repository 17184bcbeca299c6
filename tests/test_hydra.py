"""What somebody who knows Hydra or Lightning types, and what they get. Mistakes: test_bad_configuration."""

from pathlib import Path

import pytest

from conftest import read_result
from gpt.run import read_config

SHOWN = {
    "--help": "Train a GPT: python scripts/train.py [key=value ...]",
    "model=tiny --cfg job": "context_length: 64",
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


@pytest.mark.parametrize("found", ["--config-dir=mine", "hydra.searchpath=[file://mine]"])
def test_configurations_of_ones_own_are_found(succeed, text, found):
    Path("mine/experiment").mkdir(parents=True)
    mine = "# @package _global_\nname: of_my_own\ntrainer: {max_steps: 1}\n"
    Path("mine/experiment/mine.yaml").write_text(mine)
    succeed(*found.split(), "experiment=mine", "hydra.run.dir=run")
    config = read_config(Path("run"))
    assert (config["name"], config["trainer"]["max_steps"]) == ("of_my_own", 1)


MONITOR = "lightning.pytorch.callbacks.LearningRateMonitor"
MINE = """
from lightning.pytorch.callbacks import Callback

class Note(Callback):
    def __init__(self, word):
        self.word = word

    def on_train_end(self, trainer, pl_module):
        print(f"noted {self.word}")
"""


def test_callbacks_and_trainer_arguments_can_be_added(succeed, refuse):
    Path("mine.py").write_text(MINE)
    added = [f"+callbacks.lr._target_={MONITOR}", "+callbacks.lr.logging_interval=step"]
    added += ["+callbacks.note._target_=mine.Note", "+callbacks.note.word=aloud"]
    added += ["+trainer.limit_val_batches=2"]
    assert "noted aloud" in succeed(*added, "logger=csv", "trainer.max_steps=2", "hydra.run.dir=run")
    config = read_config(Path("run"))
    assert config["callbacks"]["lr"] == {"_target_": MONITOR, "logging_interval": "step"}
    assert config["trainer"]["limit_val_batches"] == 2
    assert not list(Path("run").glob("*tfevents*"))
    trusted = "++callbacks.note._target_=mine.Note"
    err = refuse("resume=run", "trainer.max_steps=3")  # a class that might be anybody's, by now
    assert err.endswith(f"if you trust it, add {trusted}\n")
    succeed("resume=run", "trainer.max_steps=3", trusted)
    assert read_result("run")["step"] == 3


def test_trainer_debug_goes_through_everything(succeed):
    assert "Profiler Report" in succeed("trainer=debug", "hydra.run.dir=run")
    assert read_result("run")["step"] == 5


def test_paths_are_those_where_one_stands_and_may_hold_an_equals_sign(succeed, text):
    """hydra.job.chdir=true moves the run into its folder; the other two change nothing."""
    text.rename("a=b.txt")
    harmless = ["hydra.job.chdir=true", "hydra.verbose=true", "hydra.job.name=x"]
    succeed("data.path=a=b.txt", *harmless, "trainer.max_steps=1", "hydra.run.dir=run=1")
    assert read_result("run=1")["step"] == 1
    assert sorted(path.name for path in Path().iterdir()) == ["a=b.txt", "run=1"]
    assert Path(read_config(Path("run=1"))["data"]["path"]).name == "a=b.txt"


def test_names_of_others_are_explained(refuse):
    assert "it is called optimizer.lr here" in refuse("learning_rate=1")
    assert "it is called resume here" in refuse("ckpt_path=x")
    assert "Lightning's Trainer is added by +trainer.limit_val" in refuse("trainer.limit_val_batches=2")
    assert list(Path().iterdir()) == []
