"""The examples of CONTRIBUTING.md, followed to the letter and trained."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import indent

import pytest

import gpt.callbacks
from conftest import ROOT, TINY

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHORT = [*TINY, "trainer.max_steps=3", "hydra.run.dir=run"]


def block(title: str, language: str) -> str:
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.search(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture
def train(call, text) -> Callable[..., str]:
    """Train with the YAML file of a section in a folder that is searched as conf/ is."""

    def run(title: str, name: str, *words: str) -> str:
        path = Path("my_conf", name)
        path.parent.mkdir(parents=True)
        path.write_text(block(title, "yaml"))
        shutil.copy(text, "my.txt")
        code, out, err = call("--config-dir", "my_conf", *SHORT, *words)
        assert code == 0, err
        return out

    return run


def edit(path: Path, pattern: str, new: str) -> None:
    content, count = re.subn(pattern, new, path.read_text(encoding="utf-8"), count=1)
    assert count == 1
    path.write_text(content, encoding="utf-8")


def test_option_of_the_architecture(tmp_path, text, monkeypatch):
    """In a copy of the project, whose code it changes."""
    for folder in ("gpt", "conf", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    branch = indent(block("An option of the architecture", "python").rstrip(), " " * 8)
    edit(Path("gpt/config.py"), r"(activation: Literal\[[^]]*)\]", r'\1, "silu"]')
    edit(Path("gpt/model.py"), r"(?=        else:\n            x = F\.relu\(x\))", f"{branch}\n")
    Path("conf/ablation/silu.yaml").write_text(block("An option of the architecture", "yaml"))
    refusal = "error: model.activation = silu: the page has no formula for it; add one to ACTIVATIONS"
    for words, code, said in [
        (["train.py", *SHORT, f"data.path={text}", "ablation=silu"], 0, ""),
        (["sample.py", "run", "--prompt", "O", "--tokens", "5"], 0, ""),
        (["export_html.py", "run"], 2, refusal),
    ]:
        command = [sys.executable, f"scripts/{words[0]}", *words[1:]]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith(said)
    assert "activation: silu" in Path("run/config.yaml").read_text()


def test_dataset(train):
    assert "7,740 characters for training" in train("A dataset", "data/my.yaml", "data=my")


@pytest.mark.parametrize("way", re.findall(r"`(\+?callbacks[.=]\S+)`", PAGE))
def test_callback(train, way, tmp_path, monkeypatch):
    monkeypatch.setattr(gpt.callbacks, "__path__", [*gpt.callbacks.__path__, str(tmp_path)])
    (tmp_path / "loss_spread.py").write_text(block("A callback", "python"))
    train("A callback", "callbacks/loss_spread.yaml", way, "data.path=my.txt", "trainer.log_every_n_steps=1")
    assert "train/loss_spread" in Path("run/metrics.csv").read_text()


def test_experiment(train):
    train("An experiment", "experiment/wide.yaml", "experiment=wide", "data.path=my.txt")
    assert "name: adamw" in Path("run/config.yaml").read_text()
