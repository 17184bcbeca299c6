import subprocess
import sys
from pathlib import Path

import pytest

import tune
from conftest import ROOT, TINY
from gpt.settings import UserError

optuna = pytest.importorskip("optuna", reason="extra tune is not installed")


@pytest.fixture
def shared(tmp_path, text, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "space.yaml").write_text("optimizer.lr: {low: 1e-4, high: 1e-2, log: true}\nmodel.n_head: {choices: [1, 2]}\n")
    steps = ["trainer.max_steps=4", "trainer.val_check_interval=1", "~callbacks.attention", "~callbacks.samples"]
    return ["--study", "s", "--space", "space.yaml", *TINY[:-1], *steps, f"data.path={text}"]


def study() -> "optuna.Study":
    return optuna.load_study(study_name="s", storage="sqlite:///outputs/tune/s/study.db")


def test_a_study_goes_on_and_ends_in_a_table_and_pictures(shared, capsys):
    tune.main([*shared, "--trials", "2"])
    tune.main([*shared, "--trials", "3"])
    out = capsys.readouterr().out
    assert len(study().trials) == 5
    folder = Path("outputs/tune/s")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {f"{number:04}" for number in range(5)}
    assert {"compare.md", "curves.png", "history.png", "slices.png"} <= {path.name for path in folder.iterdir()}
    assert out.count("best: python scripts/train.py") == 2
    assert "optimizer.lr=" in out


def test_two_processes_work_on_one_study(shared, tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "tune.py"), *shared, "--trials", "2"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert sorted(trial.number for trial in study().trials) == [0, 1, 2, 3]
    assert all(trial.state.name in ("COMPLETE", "PRUNED") for trial in study().trials)


def test_what_falls_behind_is_dropped_at_a_real_step(shared, monkeypatch):
    trials = iter((1e-2, 1e-2, 1e-2, 1e-2, 1e-2, 1e-12))  # as many as the pruner waits for, and one that learns nothing
    monkeypatch.setattr(tune, "suggest", lambda trial, space: [f"optimizer.lr={next(trials)}", "optimizer.muon_lr=1e-12"])
    tune.main([*shared, "--trials", "6"])
    last = study().trials[-1]
    assert last.state.name == "PRUNED"
    assert list(last.intermediate_values) == [1]  # of four steps
    assert "0005: dropped after 1 steps" in Path("outputs/tune/s/compare.md").read_text()


def test_a_combination_that_makes_no_model_does_not_end_the_study(shared, tmp_path, capsys):
    (tmp_path / "space.yaml").write_text("model.n_head: {choices: [3]}\n")
    with pytest.raises(UserError, match="no finished run"):
        tune.main([*shared, "--trials", "2"])
    assert [trial.state.name for trial in study().trials] == ["FAIL", "FAIL"]
    assert "model.n_head = 3" in Path("outputs/tune/s/0001/error.txt").read_text()


@pytest.mark.parametrize("line", ["{low: 1}", "3", "{choices: [1], low: 0}"])
def test_a_space_that_says_nothing_is_refused(shared, tmp_path, line):
    (tmp_path / "space.yaml").write_text(f"model.n_head: {line}\n")
    with pytest.raises(UserError, match="no search"):
        tune.main([*shared, "--trials", "1"])
