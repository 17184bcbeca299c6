"""Every file in conf/ composes to what RunConfig asks for, trains, and repeats nothing."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from test_docs import JOBS, TRAINING

from conftest import ROOT
from gpt import config
from gpt.cli.main import compose_config
from gpt.config import AdamWConfig, FinetuneConfig, ModelConfig, RunConfig, TaskConfig
from gpt.model import GPT

CONF = ROOT / "conf"
FILES = sorted(CONF.glob("**/*.yaml"))
CHOICES = [
    f"{path.parent.relative_to(CONF)}={path.stem}"
    for path in FILES
    if path.parent.name not in ("conf", "launcher", "hparams_search")  # which test_tune.py reads
]
FINE_TUNING = ("task=", "callbacks=finetune")  # choices for scripts/finetune.py, trained in test_finetune.py
# Those that are more than a model: of a model, one step is as good as another
TRAINED = [c for c in CHOICES if not c.startswith((*FINE_TUNING, "model", "ablation"))]
# in test_docs.py, in test_finetune_tasks.py, which has a play, and in test_distributed.py
ELSEWHERE = {*" ".join(TRAINING).split(), "callbacks=zero_shot", "trainer=ddp"}
USUAL = [it for it in OmegaConf.load(CONF / "train.yaml").defaults if not isinstance(it, str)]
USUAL = {f"{group}={name}" for it in USUAL for group, name in it.items()}  # and in all other tests
TRAINED = [choice for choice in TRAINED if choice not in ELSEWHERE | USUAL]
SMALL = ["model.n_layer=1", "model.n_head=2", "model.n_embd=16", "model.context_length=16", "seed=1"]
SMALL += ["data.batch_size=1", "trainer.max_steps=1", "callbacks.samples=null", "callbacks.attention=null"]
GROUPS = ("model", "data", "scheduler", "trainer", "task", "finetune")
DEFAULTS = {group: getattr(config, f"{group.title()}Config")() for group in GROUPS}  # as in the classes


def composed(*overrides: str) -> dict[str, Any]:
    return compose_config(overrides).model_dump(mode="json")


def parameter_count(*overrides: str, vocab_size: int = 65) -> int:
    return compose_config([*overrides, f"model.vocab_size={vocab_size}"]).model.parameter_count()


def test_without_a_choice_a_run_has_the_defaults_of_the_classes():
    config = compose_config([])
    assert config.optimizer == RunConfig().optimizer
    assert (config.seed, config.init, config.task, config.finetune) == (1337, None, None, None)
    for group in ("model", "data", "scheduler", "trainer"):
        assert getattr(config, group) == DEFAULTS[group]
    assert compose_config(["optimizer=adamw"]).optimizer == AdamWConfig()
    finetune = compose_config(["task=csv"], "finetune")
    assert (finetune.task, finetune.finetune) == (TaskConfig(), FinetuneConfig())


@pytest.mark.parametrize("choice", CHOICES)
def test_choice_composes_and_its_model_can_be_made(choice):
    config = compose_config([choice], "finetune" if choice.startswith(FINE_TUNING) else "train")
    assert (config.task is not None) is choice.startswith(FINE_TUNING)
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.trainer.model_extra == ({"limit_val_batches": 2} if choice == "trainer=debug" else {})
    sizes = dict(vocab_size=7, n_layer=1, n_head=2, n_embd=16, context_length=8)
    logits = GPT(config.model.model_copy(update=sizes))(torch.arange(7)[None])
    assert logits.isfinite().all()


@pytest.mark.parametrize("choice", TRAINED)
def test_choice_trains_a_step(choice, call, text):
    jobs = next((jobs for sweep, jobs in JOBS.items() if choice == f"experiment={sweep}"), [])
    small = [word for word in SMALL if word.partition("=")[0] not in [job.partition("=")[0] for job in jobs]]
    small += ["trainer.accelerator=cpu", "trainer.compile=false"] if choice != "trainer=debug" else []
    small += [] if choice.startswith("logger=") else ["logger=csv"]
    code, out, err = call(choice, *jobs, *small, f"data.path={text}")
    assert code == 0, err
    assert re.findall(r"^(\d of \d)  ", out, re.MULTILINE) == (["1 of 2", "2 of 2"] if jobs else [])
    assert jobs or "after 1 steps" in out


def test_known_sizes():
    assert 1_500_000 < parameter_count() < 3_500_000
    medium = parameter_count("model=medium", "model/arch=gpt2", "model.bias=false")
    assert medium == pytest.approx(10.7e6, rel=0.02)
    assert parameter_count("experiment=notebook") == pytest.approx(1_606_145, rel=0.005)
    assert parameter_count("experiment=gpt1", vocab_size=40_478) == 116_534_784


def test_trainers_of_one_device_differ_in_speed_alone():
    speed = {"accelerator", "devices", "precision", "compile"}
    trainers = [composed(f"trainer={name}")["trainer"] for name in ("auto", "cpu", "gpu")]
    rest = [{key: value for key, value in trainer.items() if key not in speed} for trainer in trainers]
    assert all(other == rest[0] for other in rest)


def load(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file sets by itself, and what it takes over from other files of its folder."""
    own: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))
    inherited: dict[str, Any] = {}
    for base in own.pop("defaults", []):
        if isinstance(base, str) and path.with_stem(base).is_file():
            base_own, base_inherited = load(path.with_stem(base))
            inherited |= base_inherited | base_own
    return own, inherited


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF)))
def test_no_file_repeats_a_default_or_what_it_inherits(path):
    own, inherited = load(path)
    group = path.relative_to(CONF).parts[0]
    groups = {key: own[key] for key in DEFAULTS.keys() & own.keys()}
    if group in DEFAULTS or group == "ablation":
        groups = {"model" if group == "ablation" else group: own}
    if path.stem in ("baby_gpt", "baby_gpt_cpu", "notebook", "gpt1"):  # which say all that was published
        groups = {}
    repeated = {key for key, value in own.items() if key in inherited and inherited[key] == value}
    for name, values in groups.items():
        default = DEFAULTS[name].model_dump(mode="json")
        repeated |= {f"{name}.{key}" for key, value in values.items() if default.get(key, default) == value}
    assert repeated == set()


def test_each_ablation_changes_one_choice_of_the_modern_architecture():
    modern = ModelConfig().model_dump()
    for path in (CONF / "ablation").glob("*.yaml"):
        changes = [key for key, value in load(path)[0].items() if value != modern[key]]
        assert len(changes) == (path.stem != "none"), path
