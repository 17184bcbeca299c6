import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tune
from conftest import ROOT, TINY
from gpt.cli import tune as search
from gpt.cli.space import read_space, to_overrides
from gpt.settings import UserError

optuna = pytest.importorskip("optuna", reason="extra tune is not installed")


@pytest.fixture
def shared(tmp_path, text, monkeypatch) -> list[str]:
    """The options that all calls of a test share."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_space("optimizer.lr: {low: 1e-4, high: 1e-2, log: true}", "model.n_head: {choices: [1, 2]}")
    tiny = [override for override in TINY if "samples" not in override]
    steps = ["trainer.max_steps=4", "trainer.val_check_interval=1", "~callbacks.attention", "~callbacks.samples"]
    return ["--study", "s", "--space", "../space.yaml", *tiny, *steps, f"data.path={text}"]


def write_space(*lines: str) -> Path:
    path = Path("../space.yaml")
    path.write_text("\n".join(lines) + "\n")
    return path


def study() -> "optuna.Study":
    return optuna.load_study(study_name="s", storage="sqlite:///outputs/tune/s/study.db")


def test_study_goes_on_and_ends_in_a_table_and_pictures(shared, capsys):
    tune.main([*shared, "--trials", "2"])
    tune.main([*shared, "--trials", "3"])
    out = capsys.readouterr().out
    assert len(study().trials) == 5
    folder = Path("outputs/tune/s")
    assert {path.name for path in folder.iterdir() if path.is_dir()} == {f"{number:04}" for number in range(5)}
    assert {"compare.md", "curves.png", "history.png", "slices.png"} <= {path.name for path in folder.iterdir()}
    assert out.count("best: python scripts/train.py") == 2
    assert "optimizer.lr=" in out


def test_two_processes_work_on_one_study(shared):
    command = [sys.executable, str(ROOT / "scripts" / "tune.py"), *shared, "--trials", "2"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    assert sorted(trial.number for trial in study().trials) == [0, 1, 2, 3]
    assert all(trial.state.name in ("COMPLETE", "PRUNED") for trial in study().trials)


def test_run_that_falls_behind_is_dropped_at_a_real_step(shared, monkeypatch):
    rates = iter((1e-2, 1e-2, 1e-2, 1e-2, 1e-2, 1e-12))  # as many as the pruner waits for, and one that learns nothing
    monkeypatch.setattr(search, "suggest", lambda trial, space: {"optimizer.lr": next(rates), "optimizer.muon_lr": 1e-12})
    tune.main([*shared, "--trials", "6"])
    last = study().trials[-1]
    assert last.state.name == "PRUNED"
    assert list(last.intermediate_values) == [1]  # of four steps
    assert "0005: dropped after 1 steps" in Path("outputs/tune/s/compare.md").read_text()


def test_combination_that_makes_no_model_does_not_end_the_study(shared, monkeypatch, capsys):
    heads = iter((3, 1, 3))
    monkeypatch.setattr(search, "suggest", lambda trial, space: {"model.n_head": next(heads)})
    tune.main([*shared, "--trials", "3"])
    assert [trial.state.name for trial in study().trials] == ["FAIL", "COMPLETE", "FAIL"]
    assert "model.n_head = 3" in Path("outputs/tune/s/0000/error.txt").read_text()
    captured = capsys.readouterr()
    assert "0000  model.n_head=3: model.n_head = 3: " in captured.out
    assert "Traceback" not in captured.err


REFUSED_LINES = [
    ("{low: 1}", "no search"),
    ("3", "no search"),
    ("{choices: [1], low: 0}", "no search"),
    ("{low: 1, high: 2, step: 1}", "no search"),
    ("{choices: []}", "not a list of values"),
    ("{choices: 12}", "not a list of values"),
    ("{choices: [[1]]}", "not a list of values"),
    ("{choices: [.inf]}", "no number that a setting can have"),
    ("{low: 3, high: 1}", "not below high = 1"),
    ("{low: 1, high: 1}", "not below high = 1"),
    ("{low: a, high: b}", "low = a: not a number"),
    ("{low: true, high: 2}", "low = True: not a number"),
    ("{low: .nan, high: 1}", "low = nan: no number"),
    ("{low: 1, high: 99999999999}", "high = 99999999999: no number"),
    ("{low: 0, high: 1, log: true}", "low = 0: has no logarithm"),
    ("{low: 1, high: 2, log: 3}", "log = 3: not true or false"),
    ("{choices: [abc]}", "model.n_head = abc: not a whole number"),
    ("{choices: [3]}", "n_embd = 16 is not divisible by it"),
]


@pytest.mark.parametrize(("line", "reason"), REFUSED_LINES, ids=[line for line, _ in REFUSED_LINES])
def test_line_that_cannot_be_searched_is_refused(shared, line, reason):
    write_space(f"model.n_head: {line}")
    refuse(shared, reason)


REFUSED_SPACES = [
    ("", "not a YAML file of settings"),
    ("[1]", "not a YAML file of settings"),
    ("{", "not a YAML file of settings"),
    ("a: &a [*a]", "not a YAML file of settings"),
    ("1: 2", "not a YAML file of settings"),
    ("model.n_hed: {choices: [1]}", "no such setting; did you mean model.n_head?"),
    ("hydra.run.dir: {choices: [x]}", "not a setting that can be searched"),
    ("'~model': {choices: [x]}", "not a setting that can be searched"),
]


@pytest.mark.parametrize(("content", "reason"), REFUSED_SPACES, ids=[content for content, _ in REFUSED_SPACES])
def test_file_that_holds_no_space_is_refused(shared, content, reason):
    write_space(content)
    refuse(shared, reason)


REFUSED_CALLS = [
    (["--study", "a?b"], "--study = a?b: not a plain name"),
    (["--study", "../x"], "not a plain name"),
    (["--study", ""], "not a plain name"),
    (["--study", "."], "not a plain name"),
    (["--study", "a" * 101], "not a plain name"),
    (["--trials", "0"], "must be from 1 to 100,000"),
    (["--trials", "100001"], "must be from 1 to 100,000"),
    (["--space", "nowhere.yaml"], "--space = nowhere.yaml: no such file"),
    (["model.n_hed=2"], "did you mean model.n_head?"),
    (["seed=1,2"], "not in a search"),
    (["resume=last"], "not in a search"),
    (["seed="], "seed"),
    (["data.path=nowhere.txt"], "data.path = nowhere.txt: no such file"),
    (["trainer.accelerator=tpu"], "trainer.accelerator"),
]


@pytest.mark.parametrize(("arguments", "reason"), REFUSED_CALLS, ids=[" ".join(arguments) for arguments, _ in REFUSED_CALLS])
def test_refused_search_leaves_nothing(shared, arguments, reason):
    refuse([*shared, *arguments], reason)


def refuse(arguments: list[str], reason: str) -> None:
    with pytest.raises(UserError) as refusal:
        tune.main(arguments)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert list(Path().iterdir()) == []


def test_another_search_under_the_same_name_is_refused(shared):
    tune.main([*shared, "--trials", "1"])
    with pytest.raises(UserError, match="--study = s: it has searched"):
        tune.main([*shared, "seed=2", "--trials", "1"])
    assert len(study().trials) == 1


def test_refused_trials_of_a_study_with_results_leave_it_as_it_was(shared, text):
    tune.main([*shared, "--trials", "1"])
    text.rename(text.with_name("moved.txt"))
    tune.main([*shared, "--trials", "1"])
    assert [trial.state.name for trial in study().trials] == ["COMPLETE", "FAIL"]


@pytest.mark.parametrize("damage", [b"", b"hello", b"SQLite format 3\0" + bytes(2000)])
def test_damaged_database_is_one_line(shared, damage):
    tune.main([*shared, "--trials", "1"])
    database = Path("outputs/tune/s/study.db")
    content = database.read_bytes()
    database.write_bytes(damage or content[:5000])
    with pytest.raises(UserError, match=r"--study = s: its study\.db cannot be used, .*; choose another name, or remove"):
        tune.main([*shared, "--trials", "1"])


def test_link_in_a_study_is_not_followed(shared, tmp_path):
    (tmp_path / "precious").write_text("mine")
    for name in ("study.db", ".lock"):
        Path("outputs/tune/s").mkdir(parents=True)
        Path("outputs/tune/s", name).symlink_to(tmp_path / "precious")
        with pytest.raises(UserError, match="a link"):
            tune.main([*shared, "--trials", "1"])
        shutil.rmtree("outputs")
    assert (tmp_path / "precious").read_text() == "mine"


def test_folder_with_signs_of_an_address_has_its_own_database(shared, monkeypatch):
    folder = Path("a?b%20{c}#")
    folder.mkdir()
    monkeypatch.chdir(folder)
    tune.main([argument.replace("../space", "../../space") for argument in shared] + ["--trials", "1"])
    assert Path("outputs/tune/s/study.db").stat().st_size > 0


def test_values_are_written_as_hydra_reads_them():
    values = {"a": None, "b": True, "c": 1e-05, "d": 3, "e": "gpt1", "f": "a b'"}
    assert to_overrides(values) == ["a=null", "b=true", "c=1e-05", "d=3", "e=gpt1", r"f='a b\''"]


def test_own_space_is_valid():
    assert json.dumps(read_space(ROOT / "conf" / "tune.yaml"))
