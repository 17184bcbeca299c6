"""An installed copy, from a wheel and without the repository: its programs, and conf/ inside it."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TINY

pytestmark = pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="no setuptools here")
ABOUT = """
import gpt, gpt.cli.overrides, importlib.metadata
print(gpt.__file__, gpt.cli.overrides.CONF)
for program in importlib.metadata.distribution("gpt-from-scratch").entry_points:
    print(program.name, callable(program.load()))
"""
PROGRAMS = {"train", "finetune", "sample", "evaluate", "compare", "report", "tune", "classify"}
PROGRAMS |= {"export-hf", "export-html"}


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


def test_installed_copy_trains_and_samples_in_an_empty_folder(site, call, text):
    def run(*command: str | Path) -> str:
        environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    place, *programs = run(sys.executable, "-c", ABOUT).splitlines()
    assert place == f"{site / 'gpt' / '__init__.py'} {site / 'gpt' / 'conf'}"
    assert {*programs} == {f"gpt-{name} True" for name in PROGRAMS}
    assert "n_embd: 160" in run(site / "bin" / "gpt-train", "--cfg", "job")
    assert "--baseline" in run(site / "bin" / "gpt-compare", "--help")
    short = [f"data.path={text}", "trainer.max_steps=2", "hydra.run.dir=outputs/run"]
    assert "\n  gpt-sample outputs/run\n" in run(site / "bin" / "gpt-train", *TINY, *short)
    sample = run(site / "bin" / "gpt-sample", "--prompt", "ROMEO:", "--tokens", "9", "--seed", "1")
    assert sample.startswith("ROMEO:")
    assert [path.name for path in Path().iterdir()] == ["outputs"]
