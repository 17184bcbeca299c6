"""What somebody who knows Hydra or Lightning types, and what they get."""

from pathlib import Path

import pytest
import yaml

from conftest import TINY, read_result
from gpt.cli.main import compose_config
from gpt.run import read_config

SHOWN = {
    "--help": "Train a GPT: python scripts/train.py [key=value ...]",
    "model=tiny --cfg job": "context_length: 64",
    "model=tiny --cfg job --resolve": "name: tiny",
    "--cfg hydra": "output_subdir: null",
    "--info config": "Config search path",
    "--info": "Config search path",
    "--hydra-help": "--multirun",
}


@pytest.mark.parametrize("options", SHOWN)
def test_what_hydra_shows_trains_nothing(call, options):
    code, out, err = call(*options.split())
    assert (code, err) == (0, "")
    assert SHOWN[options] in out
    assert list(Path().iterdir()) == []


@pytest.fixture
def configs() -> Path:
    """A folder of configuration files of one's own."""
    Path("mine/experiment").mkdir(parents=True)
    mine = "# @package _global_\nname: of_my_own\ntrainer: {max_steps: 1}\n"
    Path("mine/experiment/mine.yaml").write_text(mine)
    return Path("mine")


@pytest.mark.parametrize(
    "found", [["--config-dir", "mine"], ["hydra.searchpath=[file://mine]"]], ids=" ".join
)
def test_configurations_of_ones_own_are_found(call, text, configs, found):
    code, _, err = call(*found, *TINY, f"data.path={text}", "experiment=mine", "hydra.run.dir=run")
    assert code == 0, err
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


def test_callbacks_and_trainer_arguments_can_be_added(succeed, call):
    Path("mine.py").write_text(MINE)
    added = [f"+callbacks.lr._target_={MONITOR}", "+callbacks.lr.logging_interval=step"]
    added += [
        "+callbacks.note._target_=mine.Note",
        "+callbacks.note.word=aloud",
        "+trainer.limit_val_batches=2",
    ]
    out = succeed(*added, "logger=csv", "trainer.max_steps=2", "hydra.run.dir=run")
    assert "noted aloud" in out
    config = read_config(Path("run"))
    assert config["callbacks"]["lr"] == {"_target_": MONITOR, "logging_interval": "step"}
    assert config["trainer"]["limit_val_batches"] == 2
    assert not list(Path("run").glob("*tfevents*"))
    code, _, err = call("resume=run", "trainer.max_steps=3")  # a class that might be anybody's, by now
    assert code == 2
    assert err.endswith("if you trust it, add ++callbacks.note._target_=mine.Note\n")
    code, _, err = call("resume=run", "trainer.max_steps=3", "++callbacks.note._target_=mine.Note")
    assert code == 0, err
    assert read_result("run")["step"] == 3


def test_trainer_debug_goes_through_everything(succeed):
    assert "Profiler Report" in succeed("trainer=debug", "hydra.run.dir=run")
    assert read_result("run")["step"] == 5


@pytest.mark.parametrize("several", [False, True])
def test_relative_paths_mean_where_one_stands(succeed, several):
    """hydra.job.chdir=true moves each job into its folder; hydra.verbose=true only says more."""
    sweep = ["-m", "seed=1,2"] if several else ["hydra.run.dir=run"]
    succeed(
        *sweep, "trainer.max_steps=1", "data.path=../text.txt", "hydra.job.chdir=true", "hydra.verbose=true"
    )
    runs = list(Path("outputs/sweeps").glob("*/*/")) if several else [Path("run")]
    assert [read_result(run)["step"] for run in runs] == [1] * (1 + several)
    assert sorted(path.name for path in Path().iterdir()) == (["outputs"] if several else ["run"])


def test_value_may_hold_an_equals_sign_and_a_job_another_name(succeed, text):
    text.rename("a=b.txt")
    succeed("data.path=a=b.txt", "hydra.job.name=x", "trainer.max_steps=1", "hydra.run.dir=run=1")
    assert yaml.safe_load(Path("run=1/config.yaml").read_text())["data"]["path"] == "a=b.txt"


REFUSED = {
    "block_size=8": "block_size = 8: no such setting; it is called model.context_length here",
    "max_iters=8": "it is called trainer.max_steps here",
    "learning_rate=1": "it is called optimizer.lr here",
    "ckpt_path=x": "it is called resume here",
    "n_layer=2": "did you mean model.n_layer?",
    "model.n_layers=2": "model.n_layers = 2: no such setting; did you mean model.n_layer?",
    "trainer.limit_val_batches=2": "Lightning's Trainer is added by +trainer.limit_val_batches",
    "+trainer.limit_val_batchs=2": "trainer.limit_val_batchs = 2: not a setting of a run; did you mean",
    "+trainer.fast_dev_run=true": "trainer.fast_dev_run = True: not a setting of a run; use trainer=debug",
    "+callbacks.x._target_=no.Such": "callbacks.x = no.Such: ",
    f"+callbacks.lr._target_={MONITOR} +callbacks.lr.interval=step": f"callbacks.lr = {MONITOR}: ",
    "+callbacks.lr.interval=step": "names no class; write callbacks.lr._target_=",
    "model=huge": "model = huge: no such file in conf/model/; choose one of medium, small, tiny",
    "seed=1,2": "seed=1,2 = (several values): that is a sweep; add -m",
    "--max-steps 3": "settings have no dashes; write them as trainer.max_steps=3",
}


@pytest.mark.parametrize("typed", REFUSED)
def test_mistake_is_one_line_that_helps(call, text, typed):
    code, out, err = call(*TINY, f"data.path={text}", "trainer.max_steps=1", *typed.split())
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert REFUSED[typed] in err
    assert list(Path().iterdir()) == []


def test_composing_is_what_the_command_line_does():
    config = compose_config(["model=tiny", "optimizer=adamw", "data.path=a=b.txt", "callbacks.samples=null"])
    assert (config.name, config.model.n_embd, config.optimizer.name) == ("tiny", 64, "adamw")
    assert (config.data.path, "samples" in config.callbacks) == ("a=b.txt", False)
