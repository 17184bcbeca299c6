"""An installed copy, from a wheel and without the repository: its programs, and conf/ inside it."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from conftest import ROOT, TINY

pytestmark = pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="no setuptools here")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the project installed. Building writes next to the sources, so it is given a copy."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    for name in ("gpt", "scripts", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", wheels], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    return site


def run(site: Path, *command: str) -> str:
    """What a program of the installed copy prints, or with `python` any Python code."""
    program = [sys.executable] if command[0] == "python" else [site / "bin" / command[0]]
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*program, *command[1:]], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_installed_copy_trains_and_samples_in_an_empty_folder(site, call, text):
    assert run(site, "python", "-c", "import gpt; print(gpt.__file__)") == f"{site / 'gpt' / '__init__.py'}\n"
    assert (
        run(site, "python", "-c", "from gpt.cli.overrides import CONF; print(CONF)")
        == f"{site / 'gpt' / 'conf'}\n"
    )
    out = run(
        site, "gpt-train", *TINY, f"data.path={text}", "trainer.max_steps=2", "hydra.run.dir=outputs/run"
    )
    assert "\n  gpt-sample outputs/run\n" in out
    assert run(site, "gpt-sample", "--prompt", "ROMEO:", "--tokens", "9", "--seed", "1").startswith("ROMEO:")
    assert "n_embd: 160" in run(site, "gpt-train", "--cfg", "job")
    assert [path.name for path in Path().iterdir()] == ["outputs"]


@pytest.mark.parametrize("program", PROJECT["scripts"])
def test_each_program_shows_its_help(site, program):
    assert "gpt" in PROJECT["scripts"][program]
    assert "python scripts/" in run(site, program, "--help")
