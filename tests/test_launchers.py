"""Sweeps through Hydra's launchers, as a user starts them. Each is tested where its plugin is installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TINY


@pytest.mark.parametrize(
    ("launcher", "settings"),
    [
        ("joblib", ["hydra.launcher.n_jobs=2"]),
        pytest.param("submitit_local", [], marks=pytest.mark.slow),
        pytest.param("ray", ["hydra.launcher.ray.init.num_cpus=2"], marks=pytest.mark.slow),
    ],
)
def test_launcher_runs_a_sweep(launcher, settings, tmp_path, text):
    plugin = f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher"
    if importlib.util.find_spec("hydra_plugins") is None or importlib.util.find_spec(plugin) is None:
        pytest.skip(f"{plugin} is not installed: extra {'ray' if launcher == 'ray' else 'sweep'}")
    steps = ["trainer.max_steps=2", f"data.path={text}", "model.n_head=2,3,4"]
    command = [sys.executable, str(ROOT / "scripts/train.py"), "-m", f"hydra/launcher={launcher}"]
    command += [*settings, *TINY, *steps]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stderr
    assert "1 of 3 jobs failed" in done.stderr
    (folder,) = Path(tmp_path / "outputs" / "sweeps").iterdir()
    for name in ("n_head-2", "n_head-4"):
        assert json.loads((folder / name / "result.json").read_text())["step"] == 2
    assert "model.n_head = 3" in (folder / "n_head-3" / "error.txt").read_text()
    assert "model.n_head = 3" in (folder / "compare.md").read_text()
    if launcher == "joblib":  # two jobs at once share the cores
        threads = json.loads((folder / "n_head-2" / "run.json").read_text())["machine"]["threads"]
        assert threads == max(1, os.cpu_count() // 2)


def test_settings_for_slurm_exist():
    """The most that can be tested without a cluster: the plugin knows each of our settings."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="extra sweep is not installed")
    from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
    from omegaconf import OmegaConf

    ours = OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / "submitit_slurm.yaml")
    assert set(ours) <= set(OmegaConf.structured(SlurmQueueConf))
