import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import TINY
from gpt.callbacks.step_seed import StepSeed
from gpt.cli.live import TimeLeft

SWEEP = ["-m", *TINY, "trainer.max_steps=2", "model.n_layer=1", "model.n_head=2,3,4"]


def job_lines(out: str) -> list[str]:
    return [line for line in out.splitlines() if " of 3  " in line]


def only_folder(parent: str = "outputs/sweeps") -> Path:
    (folder,) = Path(parent).iterdir()
    return folder


def test_sweep_prints_a_line_for_each_job_and_ends_in_a_table(call, text):
    code, out, err = call(*SWEEP, f"data.path={text}")
    assert code == 2
    lines = job_lines(out)
    assert [line.split(": ")[0] for line in lines] == ["1 of 3  n_head=2", "2 of 3  n_head=3", "3 of 3  n_head=4"]
    assert "failed: model.n_head = 3: n_embd = 16 is not divisible by it" in lines[1]
    folder = only_folder()
    assert folder.name.startswith("tiny_n_head_")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {"n_head=2", "n_head=3", "n_head=4"}
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {"compare.md", "compare.csv", "curves.png", "axes.png"}  # and no multirun.yaml
    table = (folder / "compare.md").read_text()
    assert table.startswith("| n_head |")
    for text in (table, out):
        assert "n_head=3: model.n_head = 3: n_embd = 16 is not divisible by it" in text
    assert err.startswith("error: sweep = outputs/sweeps/tiny_n_head_")
    assert "1 of 3 jobs failed" in err
    assert err.count("\n") == 1
    assert out.splitlines()[:2] == [f"sweep of 3 runs in {folder}", "  n_head = 2, 3, 4"]


def test_same_command_continues_and_another_is_another_sweep(call, text):
    call(*SWEEP, f"data.path={text}")
    folder = only_folder()
    (folder / "n_head=4" / "result.json").unlink()
    kept = (folder / "n_head=2" / "result.json").read_bytes()
    _, out, _ = call(*SWEEP, f"data.path={text}")
    assert ["done before" in line for line in job_lines(out)] == [True, False, False]
    assert (folder / "n_head=2" / "result.json").read_bytes() == kept
    assert (folder / "n_head=4" / "result.json").exists(), out
    code, _, _ = call(*SWEEP[:-1], "model.n_head=2,4", f"data.path={text}", "optimizer.lr=1e-4")
    assert code == 0
    assert len(list(Path("outputs/sweeps").iterdir())) == 2


def test_terminal_shows_the_job_that_trains_and_when_all_will_be_done(call, text, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, err = call("-m", *TINY, f"data.path={text}", "trainer.max_steps=5", "seed=1,2")
    assert code == 0, err
    first, second = (part for part in out.split("sweep of 2 runs")[1].split("val loss")[:2])
    assert "1 of 2  seed=1" in first
    assert "all done in 0:00:" in first
    assert "2 of 2  seed=2" in second


def test_time_left_is_that_of_the_runs_which_were_trained(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 130.0)
    assert str(TimeLeft(started=100, trained=0, left=3)) == ""  # nothing is known yet
    left = TimeLeft(started=100, trained=1, left=3)
    assert str(left) == "all done in 0:01:30"
    left.share = 0.5  # of the present run
    assert str(left) == "all done in 0:00:50"
    assert str(TimeLeft(started=100, trained=3, left=0)) == ""


REFUSED = [
    (["seed=1,2", "model.n_head=3"], "model.n_head = 3: n_embd = 16 is not divisible by it"),
    (["seed=1,2", "data.path=nowhere.txt"], "data.path = nowhere.txt: no such file"),
    (["model.n_hed=1,2"], "model.n_hed = 1: no such setting; did you mean model.n_head?"),
    (["optimizer=adamw,adam"], "optimizer = adam: no such file in conf/optimizer/"),
    (["seed=1,2", "name=../../x"], "name = ../../x: "),
    (["seed=1,2", "resume=last"], "resume = last: not for sweeps"),
    (["seed=interval(1,2)"], "sweep = seed=interval(1,2): not a list of values"),
    (["seed=range(1,100000000)"], "10,001 jobs or more"),
    (["seed=1,2", "name='${nothing}'"], "Interpolation key 'nothing' not found"),
]


@pytest.mark.parametrize(("overrides", "reason"), REFUSED, ids=[" ".join(overrides) for overrides, _ in REFUSED])
def test_refused_sweep_is_one_line_and_leaves_nothing(call, text, overrides, reason):
    has_path = any(override.startswith("data.path") for override in overrides)
    code, _, err = call("-m", *TINY, *([] if has_path else [f"data.path={text}"]), "trainer.max_steps=1", *overrides)
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert reason in err
    assert list(Path().iterdir()) == []


def test_refused_sweep_leaves_what_was_there_before(call, text):
    Path("outputs/sweeps").mkdir(parents=True)
    Path("outputs/mine").write_text("mine")
    assert call("-m", *TINY, "data.path=nowhere.txt", "seed=1,2")[0] == 2
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


def test_link_in_a_sweep_is_not_followed(call, text, tmp_path):
    sweep = ["-m", *TINY, f"data.path={text}", "trainer.max_steps=1", "seed=1,2"]
    assert call(*sweep)[0] == 0
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (only_folder() / "multirun.yaml").symlink_to(precious)
    code, _, err = call(*sweep)
    assert (code, precious.read_text()) == (2, "mine")
    assert "a link" in err


def test_bug_in_a_job_keeps_its_traceback(call, text, monkeypatch):
    def fail(self, trainer, *args):
        if trainer.global_step == 1:  # an earlier error would be taken for settings that do not fit
            raise RuntimeError("a bug")

    monkeypatch.setattr(StepSeed, "on_train_batch_start", fail)
    code, out, _ = call("-m", *TINY, f"data.path={text}", "trainer.max_steps=2", "seed=1,2")
    assert code == 2
    assert "1 of 2  seed=1: failed: RuntimeError: a bug" in out
    error = (only_folder() / "seed=1" / "error.txt").read_text()
    assert error.splitlines()[0] == "RuntimeError: a bug"
    assert "Traceback" in error


def test_refusal_before_the_first_step_leaves_nothing(call, text, monkeypatch):
    def fail(self, *args):
        raise RuntimeError("does not fit")

    monkeypatch.setattr(StepSeed, "on_train_batch_start", fail)  # TensorBoard's file is open by then
    code, _, err = call("-m", *TINY, f"data.path={text}", "trainer.max_steps=2", "seed=1,2")
    assert code == 2
    assert err.count("\n") == 1
    assert list(Path().iterdir()) == []


def test_choices_of_groups_and_equal_names_make_folders_of_their_own(call, text):
    code, _, err = call("-m", *TINY, f"data.path={text}", "trainer.max_steps=1", "model/arch=gpt1,gpt2", "seed=1,2")
    assert code == 0, err
    folder = only_folder()
    runs = {path.name for path in folder.iterdir() if path.is_dir()}
    assert runs == {"arch=gpt1,seed=1", "arch=gpt1,seed=2", "arch=gpt2,seed=1", "arch=gpt2,seed=2"}
    assert (folder / "compare.md").read_text().startswith("| arch |")


@pytest.mark.parametrize(
    ("place", "jobs"),
    [
        ("elsewhere/King Lear.txt", ["path=text.txt", "path=King-Lear.txt"]),
        ("elsewhere/text.txt", ["job=0", "job=1"]),  # which another path ends in too
    ],
)
def test_jobs_are_named_by_the_ends_of_paths_or_else_numbered(call, text, tmp_path, place, jobs):
    other = tmp_path / place
    other.parent.mkdir()
    other.write_text(text.read_text())
    assert text.name == "text.txt"
    code, out, err = call("-m", *TINY, f"data.path={text},'{other}'", "trainer.max_steps=1")
    assert code == 0, err
    assert [line.split(": ")[0] for line in out.splitlines()[2:4]] == [f"1 of 2  {jobs[0]}", f"2 of 2  {jobs[1]}"]


def test_typed_values_replace_what_an_experiment_sweeps_over(call, text):
    arguments = ["experiment=sweep_arch", *TINY, f"data.path={text}", "trainer.max_steps=1", "model/arch=gpt2,modern", "seed=7"]
    code, out, err = call(*arguments)
    assert code == 0, err
    assert [line.split(": ")[0] for line in out.splitlines()[2:4]] == ["1 of 2  arch=gpt2", "2 of 2  arch=modern"]


def test_folder_of_another_run_is_left_alone(call, text):
    run = [*TINY, f"data.path={text}", "trainer.max_steps=2", "hydra.run.dir=run"]
    assert call(*run)[0] == 0
    before = {path: path.read_bytes() for path in Path("run").rglob("*.*")}
    code, _, err = call(*run, "optimizer.lr=1e-4")
    assert code == 2
    assert err.startswith("error: optimizer.lr = 0.0001: the run in ")
    assert {path: path.read_bytes() for path in Path("run").rglob("*.*")} == before
    assert call(*run)[0] == 0  # the same once more: nothing to do
    assert {path: path.read_bytes() for path in Path("run").rglob("*.*")} == before


def history(folder: str) -> list[dict[str, str]]:
    """All that was logged, but for the speed."""
    with open(f"{folder}/metrics.csv", newline="") as file:
        return [{key: value for key, value in row.items() if not key.startswith("perf")} for row in csv.DictReader(file)]


def scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(folder)
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("perf")]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize(
    "settings",
    [
        ["optimizer=adamw"],
        ["optimizer=muon", "model.dropout=0.2"],
        ["optimizer=muon", "model.dropout=0.2", "trainer.accumulate_grad_batches=2"],
        ["optimizer=adamw", "callbacks=ema", "callbacks.ema.decay=0.5", "trainer.val_check_interval=2"],
    ],
    ids=" ".join,
)
def test_run_killed_twice_is_bit_identical(call, text, monkeypatch, settings):
    run = [*TINY, f"data.path={text}", "trainer.max_steps=8", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1"]
    assert call(*run, *settings, "hydra.run.dir=whole")[0] == 0
    seed_batch, cuts = StepSeed.on_train_batch_start, [-1, 7, 5]

    def cut(self, trainer, pl_module, batch, batch_idx):
        seed_batch(self, trainer, pl_module, batch, batch_idx)
        if trainer.global_step == cuts[-1]:
            raise RuntimeError("the plug was pulled")

    monkeypatch.setattr(StepSeed, "on_train_batch_start", cut)
    for _ in range(2):
        code, _, err = call(*run, *settings, "hydra.run.dir=parts")
        assert code == 1
        assert "the plug was pulled" in err
        cuts.pop()
        assert not Path("parts/result.json").exists()
    assert call(*run, *settings, "hydra.run.dir=parts")[0] == 0

    assert history("parts") == history("whole")
    for shown in ("", "/train", "/best"):
        assert scalars(f"parts{shown}") == scalars(f"whole{shown}")
    for name in ("best", "last"):
        parts, whole = (torch.load(f"{run}/checkpoints/{name}.ckpt", weights_only=True) for run in ("parts", "whole"))
        assert parts["global_step"] == whole["global_step"]
        assert all(torch.equal(parts["state_dict"][key], tensor) for key, tensor in whole["state_dict"].items())
    parts, whole = (json.loads(Path(f"{run}/result.json").read_text()) for run in ("parts", "whole"))
    assert all(parts[key] == whole[key] for key in ("best_val_loss", "best_step", "final_val_loss", "step"))
