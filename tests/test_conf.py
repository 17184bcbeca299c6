"""Every file in conf/ composes to what RunConfig asks for, trains for two steps, and repeats nothing."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from conftest import ROOT, TINY
from gpt.callbacks import CALLBACKS, LOGGERS
from gpt.cli.overrides import compose
from gpt.config import RunConfig, TrainerConfig
from gpt.data import DataConfig
from gpt.finetune.config import FinetuneConfig
from gpt.model import GPTConfig, parameter_count
from gpt.optim import OPTIMIZERS, SchedulerConfig

CONF = ROOT / "conf"
FILES = sorted(CONF.glob("**/*.yaml"))
CHOICES = [
    f"{path.parent.relative_to(CONF)}={path.stem}"
    for path in FILES
    if path.parent != CONF and not path.is_relative_to(CONF / "hydra") and path.stem != "base"  # base is part of all trainers
]
NEEDS_A_PLAY = "callbacks=zero_shot"  # trained in test_zero_shot.py
FINE_TUNING = ("task=", "callbacks=finetune")  # choices for scripts/finetune.py, whose tasks are trained in test_finetune.py
SEVERAL_DEVICES = ("trainer=ddp", "trainer=fsdp")  # trained in test_distributed.py


def composed(*overrides: str) -> dict[str, Any]:
    """The plain values that a command line with these overrides gives a run."""
    values = dict(compose(overrides).values)
    del values["resume"]
    return values


def model_config(*overrides: str, vocab_size: int = 65) -> GPTConfig:
    return dataclasses.replace(RunConfig.from_dict(composed(*overrides)).model, vocab_size=vocab_size)


def names(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


@pytest.mark.parametrize("choice", CHOICES)
def test_keys_are_the_fields_of_the_dataclasses(choice):
    is_fine_tuning = choice.startswith(FINE_TUNING)
    values = dict(compose([choice], "finetune" if is_fine_tuning else "train").values)
    del values["resume"]
    assert values.keys() == names(RunConfig) - (set() if is_fine_tuning else {"task", "finetune"})
    if is_fine_tuning:
        assert values["finetune"].keys() == names(FinetuneConfig)
    optimizer = OPTIMIZERS[values["optimizer"]["name"]]
    groups = {"model": GPTConfig, "data": DataConfig, "optimizer": optimizer, "scheduler": SchedulerConfig}
    for group, cls in (groups | {"trainer": TrainerConfig}).items():
        assert values[group].keys() == names(cls), group
    assert values["callbacks"].keys() <= CALLBACKS.keys()
    assert values["logger"].keys() <= LOGGERS.keys()
    RunConfig.from_dict(values)  # raises UserError for what does not fit


@pytest.mark.parametrize(
    "choice", [choice for choice in CHOICES if not choice.startswith((*SEVERAL_DEVICES, *FINE_TUNING, NEEDS_A_PLAY))]
)
def test_choice_trains_two_steps(choice, call, text):
    is_sweep = choice.startswith(("experiment=sweep", "experiment=ensemble"))
    sizes = [] if choice.startswith(("model=", "experiment=")) and not is_sweep else TINY
    overrides = [choice, *sizes, f"data.path={text}", "data.batch_size=1", "trainer.max_steps=2", "hydra.run.dir=run"]
    overrides += ["trainer.accelerator=cpu", "trainer.compile=false"] if choice == "trainer=gpu" else []
    if is_sweep:
        fewer_jobs = {
            "shape": ["model.n_layer=1", "model.n_head=1"],
            "ablation": ["ablation=none,no_conv"],
            "experiment=ensemble": ["model.n_head=2"],
        }
        overrides += ["seed=1", *fewer_jobs.get(choice.split("_")[-1], [])]
    if choice == "experiment=gpt1":  # no gigabytes of checkpoints, and little of what takes long
        overrides += ["~callbacks.best", "~callbacks.last", "~callbacks.attention", "callbacks.samples.tokens=5"]
    code, out, err = call(*overrides)
    assert code == 0, err
    assert ("done before" not in out and "1 of " in out) if is_sweep else "after 2 steps" in out


def test_known_sizes():
    assert 1_500_000 < parameter_count(model_config()) < 3_500_000
    assert parameter_count(model_config("model=medium", "model/arch=gpt2", "model.bias=false")) == pytest.approx(10.7e6, rel=0.02)
    assert parameter_count(model_config("experiment=notebook")) == pytest.approx(1_606_145, rel=0.005)
    assert parameter_count(model_config("experiment=gpt1", vocab_size=40_478)) == 116_534_784


PUBLISHED = {
    "experiment=baby_gpt": {
        "model": dict(n_layer=6, n_head=6, n_embd=384, context_length=256, dropout=0.2, bias=False),
        "data": dict(batch_size=64),
        "optimizer": dict(name="adamw", lr=1e-3, betas=[0.9, 0.99], weight_decay=0.1),
        "scheduler": dict(shape="cosine", warmup_ratio=0.02, decay_ratio=1.0, min_lr_ratio=0.1),
        "trainer": dict(max_steps=5000),
    },
    "experiment=baby_gpt_cpu": {
        "model": dict(n_layer=4, n_head=4, n_embd=128, context_length=64, dropout=0.0),
        "data": dict(batch_size=12),
        "trainer": dict(max_steps=2000),
    },
    "experiment=notebook": {
        "model": dict(n_layer=5, n_head=5, n_embd=160, context_length=256, dropout=0.2, activation="relu"),
        "data": dict(batch_size=64),
        "optimizer": dict(name="adamw", lr=3e-4),
        "scheduler": dict(decay_ratio=0.0),
        "trainer": dict(max_steps=20000),
    },
    "experiment=gpt1": {
        "model": dict(n_layer=12, n_head=12, n_embd=768, context_length=512, norm_position="post"),
        "optimizer": dict(lr=2.5e-4, weight_decay=0.01),
        "scheduler": dict(min_lr_ratio=0.0),
    },
}


@pytest.mark.parametrize("experiment", PUBLISHED)
def test_baseline_is_the_published_one(experiment):
    values = composed(experiment)
    for group, published in PUBLISHED[experiment].items():
        assert {key: values[group][key] for key in published} == published


def test_gpt1_warms_up_for_2000_steps():
    values = composed("experiment=gpt1")
    assert values["scheduler"]["warmup_ratio"] * values["trainer"]["max_steps"] == 2000


@pytest.mark.parametrize("size", ["tiny", "small", "medium"])
def test_size_and_architecture_are_independent(size):
    def sizes(arch: str) -> list[int]:
        model = composed(f"model={size}", f"model/arch={arch}")["model"]
        return [model[key] for key in ("context_length", "n_layer", "n_head", "n_embd")]

    assert sizes("gpt1") == sizes("gpt2") == sizes("modern")


def test_trainers_of_one_device_differ_in_speed_alone():
    speed = {"accelerator", "devices", "precision", "compile", "detect_anomaly", "profiler"}
    trainers = [composed(f"trainer={name}")["trainer"] for name in ("auto", "cpu", "gpu", "debug")]
    rest = [{key: value for key, value in trainer.items() if key not in speed} for trainer in trainers]
    assert all(other == rest[0] for other in rest)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_only_hydra_instantiates_classes(path):
    """Callbacks, loggers and all other parts of a run are chosen by name, so no configuration can name a class to call."""
    lines = path.read_text(encoding="utf-8").splitlines()
    targets = [re.split(r"_target_:\s*", line)[1] for line in lines if "_target_" in line]
    if path in (CONF / "train.yaml", CONF / "finetune.yaml"):
        assert targets == ["gpt.cli.sweep.Sweep"]
    elif path.parent == CONF / "hydra" / "launcher":
        assert len(targets) == 1
        assert targets[0].startswith("hydra_plugins.")
    else:
        assert targets == []


def test_values_are_in_conf_alone():
    for cls in (RunConfig, GPTConfig, DataConfig, SchedulerConfig, TrainerConfig, *OPTIMIZERS.values()):
        for field in dataclasses.fields(cls):
            assert field.default is field.default_factory is dataclasses.MISSING, f"{cls.__name__}.{field.name}"


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file sets by itself, and what it takes over from other files of its folder."""
    own = OmegaConf.to_container(OmegaConf.load(path))
    inherited: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if isinstance(base, str) and base != "_self_":
            base_own, base_inherited = load(path.with_stem(base))
            inherited |= base_inherited | base_own
    return own, inherited


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != CONF], ids=lambda path: str(path.relative_to(CONF)))
def test_no_file_repeats_what_it_inherits(path):
    own, inherited = load(path)
    assert {key: value for key, value in own.items() if key in inherited and inherited[key] == value} == {}


def test_each_ablation_changes_one_choice_of_the_modern_architecture():
    modern = load(CONF / "model" / "arch" / "modern.yaml")[0]
    for path in (CONF / "ablation").glob("*.yaml"):
        changes = [key for key, value in load(path)[0].items() if value != modern[key]]
        assert len(changes) == (path.stem != "none"), path


def test_files_are_short():
    assert all(len(path.read_text(encoding="utf-8").splitlines()) <= 40 for path in FILES)
