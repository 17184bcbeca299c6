"""Sweeps: their folders and lines, what is refused, and what continues."""

import sys
from pathlib import Path

import pytest

from conftest import TINY, read_result
from gpt.callbacks import StepSeed
from gpt.cli.sweep import time_left

SWEEP = ["-m", *TINY, "trainer.max_steps=2", "model.n_layer=1", "model.n_head=2,3,4"]


def job_lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if " of 3  " in line]


def only_folder(parent: str = "outputs/sweeps") -> Path:
    (folder,) = Path(parent).iterdir()
    return folder


def test_sweep_prints_a_line_for_each_job_and_ends_in_a_table(call, text):
    code, out, err = call(*SWEEP, f"data.path={text}")
    assert code == 2
    lines, jobs = job_lines(out), ["n_head-2", "n_head-3", "n_head-4"]
    assert [line.split(": ")[0] for line in lines] == [f"{n} of 3  {job}" for n, job in enumerate(jobs, 1)]
    assert "failed: model.n_head = 3: n_embd = 16 is not divisible by it" in lines[1]
    folder = only_folder()
    assert folder.name.startswith("tiny_n_head_")
    assert [path.name for path in sorted(folder.iterdir()) if path.is_dir()] == jobs
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {"compare.md", "compare.csv", "curves.png", "axes.png"}  # and no multirun.yaml
    table = (folder / "compare.md").read_text()
    assert table.startswith("| n_head |")
    for shown in (table, out):
        assert "n_head-3: model.n_head = 3: n_embd = 16 is not divisible by it" in shown
    assert err.startswith("error: sweep = outputs/sweeps/tiny_n_head_")
    assert "1 of 3 jobs failed" in err
    assert err.count("\n") == 1
    assert out.splitlines()[:2] == [f"sweep of 3 runs in {folder}", "  n_head = 2, 3, 4"]


def test_same_command_continues_and_another_is_another_sweep(call, text):
    call(*SWEEP, f"data.path={text}")
    folder = only_folder()
    (folder / "n_head-4/result.json").unlink()
    kept = (folder / "n_head-2/result.json").read_bytes()
    _, out, _ = call(*SWEEP, f"data.path={text}")
    assert ["done before" in line for line in job_lines(out)] == [True, False, False]
    assert (folder / "n_head-2/result.json").read_bytes() == kept
    assert (folder / "n_head-4/result.json").exists(), out
    code, _, _ = call(*SWEEP[:-1], "model.n_head=2,4", f"data.path={text}", "optimizer.lr=1e-4")
    assert code == 0
    assert len(list(Path("outputs/sweeps").iterdir())) == 2


def test_terminal_shows_the_job_that_trains_and_when_all_will_be_done(succeed, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = succeed("-m", "trainer.max_steps=5", "seed=1,2")
    first, second = out.split("sweep of 2 runs")[1].split("val loss")[:2]
    assert "1 of 2  seed-1" in first
    assert "all done in 0:00:" in first
    assert "2 of 2  seed-2" in second


def test_time_left_is_that_of_the_runs_which_were_trained(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 130.0)
    assert time_left(started=100, trained=0, left=3) == ""  # nothing is known yet
    assert time_left(started=100, trained=1, left=3) == "all done in 0:01:30"
    assert time_left(started=100, trained=1.5, left=2.5) == "all done in 0:00:50"  # half of the present run
    assert time_left(started=100, trained=3, left=0) == ""


REFUSED = [
    ("seed=1,2 model.n_head=3", "model.n_head = 3: n_embd = 16 is not divisible by it"),
    ("seed=1,2 data.path=nowhere.txt", "data.path = nowhere.txt: no such file"),
    ("model.n_hed=1,2", "model.n_hed = 1,2: no such setting; did you mean model.n_head?"),
    ("optimizer=adamw,adam", "optimizer = adam: no such file in conf/optimizer/"),
    ("seed=1,2 name=../../x", "name = ../../x: "),
    ("seed=1,2 resume=last", "resume = last: not for sweeps"),
    ("seed=interval(1,2)", "sweep = seed=interval(1,2): not a list of values"),
    ("seed=range(1,100000000)", "10,001 jobs or more"),
    ("seed=1,2 name=${nothing}", "Interpolation key 'nothing' not found"),
]


@pytest.mark.parametrize(("overrides", "reason"), REFUSED, ids=[overrides for overrides, _ in REFUSED])
def test_refused_sweep_is_one_line_and_leaves_what_was_there(call, text, overrides, reason):
    Path("outputs/sweeps").mkdir(parents=True)
    Path("outputs/mine").write_text("mine")
    code, _, err = call("-m", *TINY, f"data.path={text}", "trainer.max_steps=1", *overrides.split())
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert reason in err
    assert sorted(map(str, Path().rglob("*"))) == ["outputs", "outputs/mine", "outputs/sweeps"]


def test_sweep_that_has_results_keeps_them_when_it_is_refused(call, text):
    sweep = ["-m", *TINY, f"data.path={text}", "trainer.max_steps=1", "seed=1,2"]
    assert call(*sweep)[0] == 0
    before = {path: path.read_bytes() for path in only_folder().glob("*/result.json")}
    text.rename(text.with_name("moved.txt"))
    code, _, err = call(*sweep)
    assert (code, len(before)) == (2, 2)
    assert "2 of 2 jobs failed" in err
    assert {path: path.read_bytes() for path in only_folder().glob("*/result.json")} == before


@pytest.mark.parametrize("step", [0, 1])
def test_bug_in_a_job_keeps_its_traceback_unless_no_run_has_begun(call, text, monkeypatch, step):
    def fail(self, trainer, *args):
        if trainer.global_step == step:
            raise RuntimeError("does not fit")

    monkeypatch.setattr(StepSeed, "on_train_batch_start", fail)  # TensorBoard's file is open by then
    code, out, err = call("-m", *TINY, f"data.path={text}", "trainer.max_steps=2", "seed=1,2")
    assert code == 2
    assert err.count("\n") == 1
    if step == 0:
        assert list(Path().iterdir()) == []
    else:
        assert "1 of 2  seed-1: failed: RuntimeError: does not fit" in out
        error = (only_folder() / "seed-1/error.txt").read_text()
        assert error.splitlines()[0] == "RuntimeError: does not fit"
        assert "Traceback" in error


def test_choices_of_groups_and_equal_names_make_folders_of_their_own(succeed):
    succeed("-m", "trainer.max_steps=1", "model/arch=gpt1,gpt2", "seed=1,2")
    folder = only_folder()
    runs = {f"arch-{arch}_seed-{seed}" for arch in ("gpt1", "gpt2") for seed in (1, 2)}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == runs
    assert (folder / "compare.md").read_text().startswith("| arch |")


VALUES = {
    "paths": (
        ["data.path=../text.txt,'../elsewhere/King Lear.txt'"],
        ["path-text.txt", "path-King-Lear.txt"],
    ),
    "equal ends": (["data.path=../text.txt,../elsewhere/text.txt"], ["job-0", "job-1"]),
    "lists": (["optimizer.betas=[0.9,0.95],[0.8,0.9]"], ["betas-0.9-0.95", "betas-0.8-0.9"]),
    "dictionaries": (["model={n_layer:1},{n_layer:2}"], ["job-0", "job-1"]),
    "typed again": (
        ["experiment=sweep_arch", "model/arch=gpt2,modern", "seed=7"],
        ["arch-gpt2", "arch-modern"],
    ),
    "subdir": (["seed=1,2", "hydra.sweep.subdir=${hydra.job.num}"], ["0", "1"]),
    "chdir": (["seed=1,2", "data.path=../text.txt", "hydra.job.chdir=true"], ["seed-1", "seed-2"]),
    "job name": (["seed=1,2", "hydra.job.name=x"], ["seed-1", "seed-2"]),
}


@pytest.mark.parametrize("values", VALUES)
def test_values_of_a_sweep_name_its_jobs(succeed, text, values):
    other = text.parent / "elsewhere"
    other.mkdir()
    for name in ("King Lear.txt", "text.txt"):
        (other / name).write_text(text.read_text())
    settings, jobs = VALUES[values]
    options = [] if values == "typed again" else ["-m"]
    out = succeed(*options, "trainer.max_steps=1", *settings)
    lines = [line.split(": ")[0] for line in out.splitlines() if " of 2  " in line]
    assert lines == [f"{number} of 2  {job}" for number, job in enumerate(jobs, 1)]
    assert sorted(path.parent.name for path in only_folder().glob("*/result.json")) == sorted(jobs)
    assert all(read_result(only_folder() / job)["step"] == 1 for job in jobs)


def test_folder_of_another_run_is_left_alone(succeed, call, text):
    settings = ["trainer.max_steps=2", "hydra.run.dir=run"]
    succeed(*settings)
    before = {path: path.read_bytes() for path in Path("run").rglob("*.*")}
    code, _, err = call(*TINY, f"data.path={text}", *settings, "optimizer.lr=1e-4")
    assert code == 2
    assert err.startswith("error: optimizer.lr = 0.0001: the run in ")
    assert {path: path.read_bytes() for path in Path("run").rglob("*.*")} == before
    succeed(*settings)  # the same once more: nothing to do
    assert {path: path.read_bytes() for path in Path("run").rglob("*.*")} == before
