"""Sweeps: their folders and lines, what is refused, what continues, and Hydra's launchers."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from omegaconf import OmegaConf

from conftest import ROOT, TINY, read_result, start
from gpt.callbacks import StepSeed
from gpt.cli.sweep import time_left
from gpt.module import GPTModule

SWEEP = ["-m", "trainer.max_steps=2", "model.n_layer=1"]


def job_lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if " of 3  " in line]


def only_folder() -> Path:
    (folder,) = Path("outputs/sweeps").iterdir()
    return folder


def test_sweep_prints_a_line_for_each_job_ends_in_a_table_and_is_continued_by_the_same_command(small, text):
    code, out, err = small(*SWEEP, "model.n_head=2,3,4")
    assert code == 2
    lines, jobs, folder = job_lines(out), ["n_head-2", "n_head-3", "n_head-4"], only_folder()
    assert out.splitlines()[:2] == [f"sweep of 3 runs in {folder}", "  n_head = 2, 3, 4"]
    assert [line.split(": ")[0] for line in lines] == [f"{n} of 3  {job}" for n, job in enumerate(jobs, 1)]
    assert "failed: model.n_head = 3: n_embd = 16 is not divisible by it" in lines[1]
    assert [path.name for path in sorted(folder.iterdir()) if path.is_dir()] == jobs
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {"compare.md", "compare.csv", "curves.png", "axes.png"}  # and no multirun.yaml
    table = (folder / "compare.md").read_text()
    assert table.startswith("| n_head |")
    for shown in (table, out):
        assert "n_head-3: model.n_head = 3: n_embd = 16 is not divisible by it" in shown
    assert err.startswith("error: sweep = outputs/sweeps/tiny_n_head_")
    assert str(Path.cwd()) not in out + err  # what is printed are paths from here
    assert "1 of 3 jobs failed" in err
    assert err.count("\n") == 1

    (folder / "n_head-4/result.json").unlink()
    kept = (folder / "n_head-2/result.json").read_bytes()
    _, out, _ = small(*SWEEP, "model.n_head=2,3,4")
    assert ["done before" in line for line in job_lines(out)] == [True, False, False]
    assert (folder / "n_head-2/result.json").read_bytes() == kept
    assert (folder / "n_head-4/result.json").exists(), out
    text.rename(text.with_name("moved.txt"))
    _, _, err = small(*SWEEP, "model.n_head=2,3,4")
    assert "3 of 3 jobs failed" in err
    assert (folder / "n_head-2/result.json").read_bytes() == kept


@pytest.fixture
def no_table(monkeypatch) -> None:
    """Leave out the table and the pictures at the end of a sweep, which take a second."""
    monkeypatch.setattr("gpt.analysis.table_of", lambda folder: "table: (left out)")


@pytest.mark.usefixtures("no_table")
def test_terminal_shows_the_job_that_trains_and_when_all_will_be_done(succeed, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = succeed("-m", "trainer.max_steps=5", "seed=1,2")
    first, second = out.split("sweep of 2 runs")[1].split("val loss")[:2]
    assert "1 of 2  seed-1" in first
    assert " s, all done in 0:00:" in out
    assert "2 of 2  seed-2" in second


def test_time_left_is_that_of_the_runs_which_were_trained(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 130.0)
    assert time_left(started=100, trained=0, left=3) == ""  # nothing is known yet
    assert time_left(started=100, trained=1, left=3) == ", all done in 0:01:30"
    assert time_left(started=100, trained=3, left=0) == ""


def test_bug_in_a_job_keeps_its_traceback(small, monkeypatch):
    def fail(self, trainer, *args):
        if trainer.global_step == 1:
            raise RuntimeError("does not fit")

    monkeypatch.setattr(StepSeed, "on_train_batch_start", fail)
    code, out, err = small("-m", "trainer.max_steps=2", "seed=1,2")
    assert (code, err.count("\n")) == (2, 1)
    assert "1 of 2  seed-1: failed: RuntimeError: does not fit" in out
    error = (only_folder() / "seed-1/error.txt").read_text()
    assert error.startswith("RuntimeError: does not fit\n")
    assert "Traceback" in error


@pytest.mark.usefixtures("no_table")
def test_job_at_which_another_process_works_is_left_out_and_counted(small, succeed):
    sweep = ["-m", "trainer.max_steps=1", "seed=1,2"]
    succeed(*sweep)
    (only_folder() / "seed-2/result.json").unlink()
    with FileLock(only_folder() / "seed-2/.lock"):
        code, out, err = small(*sweep)
    assert "2 of 2  seed-2: left out: run_dir = " in out
    assert (code, err.count("\n")) == (2, 1)
    assert "1 of 2 jobs were left out; the same command tries them again" in err


@pytest.mark.usefixtures("no_table")
def test_signal_in_the_last_validation_of_a_job_ends_the_sweep(small, succeed, monkeypatch):
    sweep = ["-m", "trainer.max_steps=1", "seed=1,2"]
    with monkeypatch.context() as patch:
        patch.setattr(GPTModule, "on_validation_end", lambda self: signal.raise_signal(signal.SIGTERM))
        assert small(*sweep)[0] == 143
    assert [path.name for path in only_folder().iterdir()] == ["seed-1"]
    succeed(*sweep)


VALUES = {  # what is typed, and the names of the jobs
    "-m data.path=../text.txt,'../elsewhere/King&Lear.txt'": "path-text.txt path-King-Lear.txt",
    "-m data.path=../text.txt,../elsewhere/text.txt": "job-0 job-1",  # their names are equal
    "-m optimizer.betas=[0.9,0.95],[0.8,0.9]": "betas-0.9-0.95 betas-0.8-0.9",
    "-m model={n_layer:1},{n_layer:2}": "model-n_layer-1 model-n_layer-2",
    "-m seed=1,2 hydra.sweep.subdir=${hydra.job.num}": "0 1",
    "-m seed=1,2 data.path=../text.txt hydra.job.chdir=true hydra.job.name=x": "seed-1 seed-2",
    "-m model/arch=gpt1,gpt2 seed=7,8": "arch-gpt1_seed-7 arch-gpt1_seed-8 arch-gpt2_seed-7 arch-gpt2_seed-8",
    "experiment=sweep_arch model/arch=gpt2,modern seed=7": "arch-gpt2 arch-modern",
}


@pytest.mark.parametrize("typed", VALUES)
def test_values_of_a_sweep_name_its_jobs(succeed, text, typed, request):
    if "seed=7,8" not in typed:
        request.getfixturevalue("no_table")
    other = text.parent / "elsewhere"
    other.mkdir()
    for name in ("King&Lear.txt", "text.txt"):
        (other / name).write_text(text.read_text())
    jobs = VALUES[typed].split()
    out = succeed("trainer.max_steps=1", *typed.split())
    lines = [line.split(": ")[0] for line in out.splitlines() if f" of {len(jobs)}  " in line]
    assert lines == [f"{number} of {len(jobs)}  {job}" for number, job in enumerate(jobs, 1)]
    folder = only_folder()
    assert sorted(path.parent.name for path in folder.glob("*/result.json")) == sorted(jobs)
    assert all(read_result(folder / job)["step"] == 1 for job in jobs)
    if "seed=7,8" in typed:  # the table has means over seeds
        assert (folder / "compare.md").read_text().startswith("| arch |")


LAUNCHERS = [
    ("joblib", ["hydra.launcher.n_jobs=2"]),
    pytest.param("submitit_local", [], marks=pytest.mark.slow),
    pytest.param("ray", ["hydra.launcher.ray.init.num_cpus=2"], marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("launcher", "settings"), LAUNCHERS)
def test_launcher_runs_a_sweep(launcher, settings, tmp_path, text):
    extra = "ray" if launcher == "ray" else "sweep"
    plugin = f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher"
    pytest.importorskip(plugin, reason=f"extra {extra} is not installed")
    settings = [*settings, *TINY, "trainer.max_steps=2", f"data.path={text}", "model.n_head=2,3,4"]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    process = start("train.py", "-m", f"hydra/launcher={launcher}", *settings, cwd=tmp_path, env=environment)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert "1 of 3 jobs failed" in err
    (folder,) = (tmp_path / "outputs" / "sweeps").iterdir()
    assert [read_result(folder / name)["step"] for name in ("n_head-2", "n_head-4")] == [2, 2]
    for name in ("n_head-3/error.txt", "compare.md"):
        assert "model.n_head = 3" in (folder / name).read_text()
    if launcher == "joblib":  # two jobs at once share the cores
        threads = json.loads((folder / "n_head-2" / "run.json").read_text())["machine"]["threads"]
        assert threads == max(1, os.cpu_count() // 2)


def test_settings_for_slurm_exist():
    """The most that can be tested without a cluster: the plugin knows each of our settings."""
    plugin = "hydra_plugins.hydra_submitit_launcher.config"
    known = pytest.importorskip(plugin, reason="extra sweep is not installed").SlurmQueueConf
    ours = OmegaConf.load(ROOT / "conf" / "hydra" / "launcher" / "submitit_slurm.yaml")
    assert set(ours) <= set(OmegaConf.structured(known))
