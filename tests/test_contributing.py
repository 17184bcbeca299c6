"""The examples of CONTRIBUTING.md, followed to the letter in a copy of the project."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TINY

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def block(title: str, language: str, number: int = 0) -> str:
    """A code block of the page, without the indentation that it has inside of a list."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", section, re.DOTALL | re.MULTILINE)[number]
    return re.sub(rf"^{found[0]}", "", found[1], flags=re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for folder in ("gpt", "conf", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / "project" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "project"


def train(project: Path, text: Path, *overrides: str) -> str:
    """Train the copy for some steps, and return what it prints."""
    command = [sys.executable, "scripts/train.py", *TINY, f"data.path={text}", "trainer.max_steps=3", *overrides]
    environment = {"PYTHONPATH": str(project), "PATH": "/usr/bin:/bin", "HOME": str(project), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def edit(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")


def test_option_of_the_architecture(project, text):
    model = project / "gpt" / "model.py"
    edit(model, '"relu2")', '"relu2", "silu")')
    branch, in_numpy = (
        "".join(f"        {line}\n" for line in block("An option of the architecture", "python", number).splitlines())
        for number in range(2)
    )
    edit(model, "        else:\n            x = F.relu(x)", branch + "        else:\n            x = F.relu(x)")
    decoder = project / "gpt" / "decode.py"
    edit(decoder, '"relu", "relu2")', '"relu", "relu2", "silu")')
    edit(decoder, "        else:\n            x = np.maximum(x, 0)", in_numpy + "        else:\n            x = np.maximum(x, 0)")
    (project / "conf/ablation/silu.yaml").write_text(block("An option of the architecture", "yaml"))
    train(project, text, "ablation=silu", "hydra.run.dir=run")
    assert "activation: silu" in (project / "run/config.yaml").read_text()


def test_dataset(project, text):
    (project / "my.txt").write_text(text.read_text())
    (project / "conf/data/my.yaml").write_text(block("A dataset", "yaml"))
    command = ["data=my", "hydra.run.dir=run", "data.path=my.txt"]
    assert "7,740 characters for training" in train(project, text, *command)


def test_callback(project, text):
    (project / "gpt/callbacks/loss_spread.py").write_text(block("A callback", "python"))
    table = project / "gpt/callbacks/__init__.py"
    edit(table, '    "samples": Samples,\n', '    "samples": Samples,\n    "loss_spread": LossSpread,\n')
    edit(
        table,
        "from gpt.callbacks.metrics_file",
        "from gpt.callbacks.loss_spread import LossSpread\nfrom gpt.callbacks.metrics_file",
    )
    with open(project / "conf/callbacks/default.yaml", "a", encoding="utf-8") as file:
        file.write("loss_spread: {window: 10}\n")
    train(project, text, "trainer.log_every_n_steps=1", "hydra.run.dir=run")
    assert "train/loss_spread" in (project / "run/metrics.csv").read_text()


def test_experiment(project, text):
    (project / "conf/experiment/wide.yaml").write_text(block("An experiment", "yaml"))
    train(project, text, "experiment=wide", "hydra.run.dir=run")
    assert "n_layer: 2" in (project / "run/config.yaml").read_text()
