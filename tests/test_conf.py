"""Every file in conf/ composes, says what the dataclasses ask for, and trains for two steps."""

import dataclasses
import os
import subprocess

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from conftest import ROOT, TINY
from gpt.data import DataConfig
from gpt.model import GPTConfig, parameter_count
from gpt.optim import OPTIMIZERS, SchedulerConfig
from gpt.settings import build
from gpt.trainer import split_settings

CONF = ROOT / "conf"
CHOICES = [
    f"{path.parent.relative_to(CONF)}={path.stem}"
    for path in sorted(CONF.glob("**/*.yaml"))
    if path.parent != CONF and path.parent.parent.name != "hydra"
]
PARTS = ("trainer=base", "trainer=ddp", "trainer=fsdp")  # the first is part of each; test_distributed.py has the others


def composed(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides=["name=x", "run_dir=x", *overrides])
        return {key: OmegaConf.to_container(node, resolve=True) for key, node in cfg.items() if OmegaConf.is_dict(node)}


def model_config(*overrides: str, vocab_size: int = 65) -> GPTConfig:
    return build(GPTConfig, composed(*overrides)["model"] | {"vocab_size": vocab_size}, "model")


@pytest.mark.parametrize("choice", CHOICES)
def test_says_what_the_dataclasses_ask_for(choice):
    if choice == "trainer=base":
        return  # is part of each
    groups = composed(choice)
    assert set(groups["model"]) == {field.name for field in dataclasses.fields(GPTConfig)}
    build(GPTConfig, groups["model"] | {"vocab_size": 65}, "model")
    build(DataConfig, groups["data"], "data")
    build(SchedulerConfig, groups["scheduler"], "scheduler")
    build(OPTIMIZERS[groups["optimizer"]["name"]], groups["optimizer"], "optimizer")
    if choice != "trainer=gpu" or torch.cuda.is_available():
        split_settings(groups["trainer"])


@pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice not in PARTS])
def test_takes_two_steps(choice, call, text):
    sweeping = choice.startswith("experiment=sweep")
    sizes = [] if choice.startswith(("model=", "experiment=")) and not sweeping else TINY
    overrides = [choice, *sizes, f"data.path={text}", "data.batch_size=1", "trainer.max_steps=2", "hydra.run.dir=run"]
    if choice == "trainer=gpu":  # there is none here: all else of it
        overrides += ["trainer.accelerator=cpu", "trainer.compile=false"]
    if sweeping:
        fewer = {"shape": ["model.n_layer=1", "model.n_head=1"], "ablation": ["ablation=none,no_conv"]}
        overrides += ["seed=1", *fewer.get(choice.split("_")[-1], [])]
    if choice == "experiment=gpt1":
        overrides += [
            "~callbacks.best",
            "~callbacks.last",
            "~callbacks.attention",
            "callbacks.samples.tokens=5",
        ]  # no gigabytes of checkpoints
    code, out, err = call(*overrides)
    assert code == 0, err
    assert ("done before" not in out and "1 of " in out) if sweeping else "after 2 steps" in out


def test_known_sizes():
    assert 1_500_000 < parameter_count(model_config()) < 3_500_000
    assert parameter_count(model_config("model=medium", "model/arch=gpt2", "model.bias=false")) == pytest.approx(10.7e6, rel=0.02)
    assert parameter_count(model_config("experiment=notebook")) == pytest.approx(1_606_145, rel=0.005)
    assert parameter_count(model_config("experiment=gpt1", vocab_size=40_478)) == 116_534_784


def test_baselines_are_those_that_were_published():
    baby = composed("experiment=baby_gpt")
    assert (baby["optimizer"]["lr"], baby["optimizer"]["betas"], baby["optimizer"]["weight_decay"]) == (1e-3, [0.9, 0.99], 0.1)
    assert baby["scheduler"] == {"shape": "cosine", "warmup_ratio": 0.02, "decay_ratio": 1.0, "min_lr_ratio": 0.1}
    assert (baby["data"]["batch_size"], baby["trainer"]["max_steps"], baby["model"]["dropout"]) == (64, 5000, 0.2)
    cpu = composed("experiment=baby_gpt_cpu")
    sizes = [cpu["model"][key] for key in ("n_layer", "n_head", "n_embd", "context_length", "dropout")]
    assert [*sizes, cpu["data"]["batch_size"], cpu["trainer"]["max_steps"]] == [4, 4, 128, 64, 0.0, 12, 2000]
    notebook = composed("experiment=notebook")
    sizes = [notebook["model"][key] for key in ("n_layer", "n_head", "n_embd", "context_length", "dropout", "activation")]
    assert [*sizes, notebook["data"]["batch_size"], notebook["trainer"]["max_steps"]] == [5, 5, 160, 256, 0.2, "relu", 64, 20000]
    assert (notebook["optimizer"]["name"], notebook["optimizer"]["lr"], notebook["scheduler"]["decay_ratio"]) == (
        "adamw",
        3e-4,
        0.0,
    )
    paper = composed("experiment=gpt1")
    assert (paper["optimizer"]["lr"], paper["optimizer"]["weight_decay"], paper["scheduler"]["min_lr_ratio"]) == (
        2.5e-4,
        0.01,
        0.0,
    )
    assert paper["scheduler"]["warmup_ratio"] * paper["trainer"]["max_steps"] == 2000
    assert paper["model"]["norm_position"] == "post"


def test_what_a_fresh_clone_has():
    """A file that git ignores or nobody added works on one machine alone."""
    if not (ROOT / ".git").exists():
        return  # an archive holds what was tracked and nothing else
    tracked = subprocess.run(["git", "ls-files", "conf", "gpt", "scripts"], cwd=ROOT, capture_output=True, text=True, check=True)
    there = {str(path.relative_to(ROOT)) for part in ("conf", "gpt", "scripts") for path in (ROOT / part).rglob("*.[py]*")}
    assert {name for name in there if name.endswith((".py", ".yaml"))} == {
        name for name in tracked.stdout.split() if not name.endswith(".md")
    }


def test_size_and_architecture_are_independent():
    for size in ("tiny", "small", "medium"):
        sizes = [
            {key: composed(f"model={size}", f"model/arch={arch}")["model"][key] for key in ("n_layer", "n_head", "n_embd")}
            for arch in ("gpt1", "gpt2", "modern")
        ]
        assert sizes[0] == sizes[1] == sizes[2]


def test_trainers_differ_in_speed_alone():
    speed = {"accelerator", "devices", "precision", "compile", "detect_anomaly", "profiler"}
    trainers = [composed(f"trainer={name}")["trainer"] for name in ("auto", "cpu", "gpu", "debug")]
    rest = [{key: value for key, value in trainer.items() if key not in speed} for trainer in trainers]
    assert all(other == rest[0] for other in rest)


def test_files_are_short():
    assert all(len(path.read_text().splitlines()) <= 40 for path in CONF.glob("**/*.yaml"))
    assert os.path.getsize(CONF / "train.yaml") < 3000
