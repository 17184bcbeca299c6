import os
import re
import sqlite3
import time
from pathlib import Path

import pytest

import tune
from conftest import TINY, start
from gpt.errors import UserError

optuna = pytest.importorskip("optuna", reason="extra tune is not installed")

SHORT = ["trainer.max_steps=4", "trainer.val_check_interval=1", "~callbacks.attention", "~callbacks.samples"]
SPACE = ["optimizer.lr=tag(log,interval(1e-4,1e-2))", "model.n_head=1,2"]
FOLDER = Path("outputs/tune/s")


@pytest.fixture
def shared(tmp_path, text, monkeypatch) -> list[str]:
    """The options that all calls of a test share."""
    monkeypatch.chdir(tmp_path)
    tiny = [override for override in TINY if "samples" not in override]
    return ["--study", "s", *tiny, *SHORT, f"data.path={text}", *SPACE]


def trials() -> list:
    return optuna.load_study(study_name="s", storage=f"sqlite:///{FOLDER}/study.db").trials


def states() -> list[str]:
    return [trial.state.name for trial in trials()]


def tried(line: str, count: int = 40) -> set[str]:
    """What a search tries for one setting, chosen at random."""
    probe = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = tune.read_overrides([line])
    return {tune.suggest(probe.ask(), space)[0].partition("=")[2] for _ in range(count)}


GRAMMAR = {
    "model.n_head=1,2,4": {"1", "2", "4"},
    "data.path=choice(a,'b c')": {"a", r"b\ c"},  # as Hydra reads it
    "model.n_layer=range(2,5)": {"2", "3", "4"},
    "model.n_embd=range(64,16,-16)": {"64", "48", "32"},
    "model.dropout=range(0.0,1.0,0.25)": {"0.0", "0.25", "0.5", "0.75"},
    "model.n_layer=interval(2, 4)": {"2", "3", "4"},
    "model.n_layer=int(interval(2.0,4.0))": {"2", "3", "4"},
    "model.n_layer=tag(log,int(interval(2,3)))": {"2", "3"},
}


@pytest.mark.parametrize("line", GRAMMAR)
def test_values_are_those_of_the_grammar(line):
    assert tried(line) == GRAMMAR[line]


@pytest.mark.parametrize(("interval", "fewest", "most"), [("{}", 0, 10), ("tag(log,{})", 70, 130)])
def test_interval_is_searched_evenly_and_with_tag_log_by_its_logarithm(interval, fewest, most):
    values = [float(value) for value in tried(f"optimizer.lr={interval.format('interval(1e-4,1.0)')}", 200)]
    assert all(1e-4 <= value <= 1 for value in values)
    low = sum(value < 0.01 for value in values)  # a hundredth of the interval, half of its logarithm
    assert fewest <= low <= most


def test_file_is_searched_if_nothing_else_is_and_what_was_typed_replaces_its_lines():
    default = tune.read_overrides(["seed=1"])
    assert {"seed", "model.n_layer"} <= default.keys()
    assert default["optimizer.lr"].input_line == "optimizer.lr=tag(log, interval(1e-3, 3e-2))"
    named = tune.read_overrides(["hparams_search=default", "model.n_head=2", "model.n_embd=32,64"])
    assert named["model.n_head"].value() == 2
    assert {"optimizer.lr", "model.n_embd"} <= named.keys()
    assert list(tune.read_overrides(["model.n_head=1,2"])) == ["model.n_head"]


def test_two_processes_and_then_a_third_work_on_one_study_which_ends_in_a_table_and_pictures(shared, capsys):
    for process in [start("tune.py", *shared, "--trials", "2") for _ in range(2)]:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    tune.main([*shared, "--trials", "1"])
    assert sorted(trial.number for trial in trials()) == [0, 1, 2, 3, 4]
    assert set(states()) <= {"COMPLETE", "PRUNED"}
    names = sorted(path.name for path in FOLDER.iterdir())
    assert names[:6] == [".lock", "0000", "0001", "0002", "0003", "0004"]
    assert {"compare.md", "curves.png", "history.png", "slices.png"} <= set(names)
    best = capsys.readouterr().out.splitlines()[-1]
    assert re.match("best: python scripts/train.py model=tiny .* optimizer.lr=0.0", best)


def test_trial_of_a_killed_process_is_taken_over_and_its_run_continues(shared):
    arguments = [*shared, "trainer.max_steps=400", "trainer.val_check_interval=100", "--trials", "1"]
    with start("tune.py", *arguments) as process:
        while not list(FOLDER.glob("0000/checkpoints/last.*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.kill()
    with sqlite3.connect(FOLDER / "study.db") as database:  # as if a minute had passed
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00'")
    database.close()
    tune.main(arguments)
    assert states() == ["FAIL", "COMPLETE"]
    killed, taken_over = trials()
    assert killed.params == taken_over.params
    assert min(taken_over.intermediate_values) > 100  # it has not begun again
    assert [path.name for path in FOLDER.glob("0*")] == ["0000"]


def test_run_that_falls_behind_is_dropped_at_a_real_step(shared, monkeypatch):
    rates = [1e-2] * 6 + [1e-12]  # one that is checked, as many as the pruner waits for, and a useless one
    lines = (["optimizer.muon_lr=1e-12", f"optimizer.lr={rate}"] for rate in rates)
    monkeypatch.setattr(tune, "suggest", lambda trial, space: next(lines))
    tune.main([*shared, "--trials", "6"])
    assert states() == ["COMPLETE"] * 5 + ["PRUNED"]
    assert list(trials()[-1].intermediate_values) == [1]  # of four steps
    assert "0005: dropped after 1 steps" in Path(FOLDER, "compare.md").read_text()


def test_combination_that_makes_no_model_does_not_end_the_study(shared, monkeypatch, capsys):
    heads = iter((1, 3, 1, 3))
    monkeypatch.setattr(tune, "suggest", lambda trial, space: [f"model.n_head={next(heads)}"])
    tune.main([*shared, "--trials", "3"])
    assert states() == ["PRUNED", "COMPLETE", "PRUNED"]
    assert "0000  model.n_head=3: model.n_head = 3: " in capsys.readouterr().out


REFUSED = {
    "--study ../x": "--study = ../x: not a plain name",
    "hparams_search=nowhere": "hparams_search = nowhere: no such file in conf/hparams_search/; choose one",
    "model.n_hed=1,2": "did you mean model.n_head?",
    "model.n_head=interval(a,b)": "interval(a,b)",
    "model.n_head=interval(3,1)": "model.n_head=interval(3,1): `low <= high` must hold",
    "model.n_head=abc,def": "model.n_head = abc: ",
    "model.n_head=3,5": "n_embd = 16 is not divisible by it",
    "optimizer.lr=tag(log,interval(0,1e-2))": "must hold for `log=True`",
    "resume=last": "resume = (given): not in a search",
    "data.val_fraction=0 model.n_head=1,2": "data.val_fraction = 0: a search compares validation losses",
    "data.path=nowhere.txt": "data.path = nowhere.txt: no such file",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refused_search_leaves_nothing(shared, arguments):
    with pytest.raises(UserError) as refusal:
        tune.main([*(shared[2:] if "--study" in arguments else shared), *arguments.split()])
    assert REFUSED[arguments] in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert os.listdir() == ["text.txt"]


def test_what_does_not_fit_a_study_leaves_it_as_it_was(shared, text):
    tune.main([*shared, "--trials", "1"])
    with pytest.raises(UserError, match=r"--study = s: it has searched .*model\.n_head=1,2 .*; choose"):
        tune.main([*shared, "model.n_head=1,2,4", "--trials", "1"])
    text.rename(text.with_name("moved.txt"))
    tune.main([*shared, "--trials", "1"])
    assert states() == ["COMPLETE", "PRUNED"]
    database = FOLDER / "study.db"
    for damage in (database.read_bytes()[:5000], b"hello", b"SQLite format 3\0" + bytes(2000)):
        database.write_bytes(damage)
        with pytest.raises(UserError, match=r"^--study = s: its study\.db cannot be used, .* or remove"):
            tune.main([*shared, "--trials", "1"])
