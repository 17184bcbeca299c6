"""The examples of CONTRIBUTING.md, followed to the letter in a copy of the project."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TINY

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(title: str, language: str) -> str:
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.search(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture
def project(tmp_path: Path, text: Path, monkeypatch) -> Path:
    """A copy of the project, in which the test stands, with a text of one's own."""
    for folder in ("gpt", "conf", "scripts"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / "project" / folder, ignore=ignored)
    shutil.copy(text, tmp_path / "project/my.txt")
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "project"))
    return tmp_path / "project"


def run(*words: str) -> str:
    """What a program of the copy prints."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(*overrides: str, data: str = "data.path=my.txt") -> str:
    return run("scripts/train.py", *TINY, data, "trainer.max_steps=3", "hydra.run.dir=run", *overrides)


def edit(path: Path, pattern: str, new: str) -> None:
    content, count = re.subn(pattern, new, path.read_text(encoding="utf-8"), count=1)
    assert count == 1
    path.write_text(content, encoding="utf-8")


def test_option_of_the_architecture(project):
    branch = "".join(
        f"        {line}\n" for line in block("An option of the architecture", "python").splitlines()
    )
    edit(project / "gpt/config.py", r"(activation: Literal\[[^]]*)\]", r'\1, "silu"]')
    edit(project / "gpt/model.py", r"(?=        else:\n            x = F\.relu\(x\))", branch)
    (project / "conf/ablation/silu.yaml").write_text(block("An option of the architecture", "yaml"))
    train("ablation=silu")
    assert "activation: silu" in (project / "run/config.yaml").read_text()
    assert run("scripts/sample.py", "run", "--prompt", "O", "--tokens", "5")
    page = subprocess.run([sys.executable, "scripts/export_html.py", "run"], capture_output=True, text=True)
    assert page.stderr.startswith("error: model.activation = silu: the page has no formula for it; add one to")


def test_dataset(project):
    (project / "conf/data/my.yaml").write_text(block("A dataset", "yaml"))
    assert "7,740 characters for training" in train(data="data=my")


@pytest.mark.parametrize("way", re.findall(r"`(\+?callbacks[.=]\S+)`", PAGE))
def test_callback(project, way):
    (project / "gpt/callbacks/loss_spread.py").write_text(block("A callback", "python"))
    (project / "conf/callbacks/loss_spread.yaml").write_text(block("A callback", "yaml"))
    train(way, "trainer.log_every_n_steps=1")
    assert "train/loss_spread" in (project / "run/metrics.csv").read_text()


def test_experiment(project):
    (project / "conf/experiment/wide.yaml").write_text(block("An experiment", "yaml"))
    train("experiment=wide")
    assert "n_layer: 2" in (project / "run/config.yaml").read_text()
