"""Which run is taken if none is named, and the list of runs."""

import json
import math
import os
from pathlib import Path

import pytest
from filelock import FileLock

from gpt.cli.options import find_checkpoint, find_unfinished, newest_run
from gpt.errors import UserError
from sample import age, list_runs


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_run(name: str, time: int, steps: int, finished: bool = True, kind: str = "best", **result) -> Path:
    """A run with the files that are read, whose last checkpoint was written `time` seconds after 1970."""
    folder = Path("outputs") / name
    checkpoint = folder / "checkpoints" / f"{kind}.safetensors"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    task = "task:\n  name: mark\n" if "test_accuracy" in result else ""
    (folder / "config.yaml").write_text(f"model:\n  n_layer: 2\n{task}seed: 1\n")
    bits = 2.5 / math.log(2)
    metrics = f"step,val/loss,val/bits_per_char\n0,3.5,9\n1,,\n{steps - 1},2.5,{bits}\n"
    (folder / "metrics.csv").write_text(metrics)
    if finished:
        numbers = {"step": steps, "best_val_loss": 1.75, "best_step": steps, "final_val_loss": 2.0}
        numbers |= {"final_bits_per_char": 2.0 / math.log(2)} | result
        (folder / "result.json").write_text(json.dumps(numbers))
    os.utime(checkpoint.parent, (time, time))
    return checkpoint


def test_newest_run_of_500_steps_is_taken_and_the_reason_told(capsys):
    first = make_run("sweeps/s/a", 1, steps=4)
    assert find_checkpoint(None) == first
    second = make_run("b", 2, steps=200)
    assert find_checkpoint(None) == second  # there is no longer one
    notes = ["note: outputs/sweeps/s/a is the newest run", "note: outputs/b is the newest run"]
    assert capsys.readouterr().err.splitlines() == notes
    long = make_run("c", 1, steps=2000)
    assert find_checkpoint(None) == long
    reason = "the newest run of at least 500 steps; outputs/b is shorter"
    assert capsys.readouterr().err == f"note: outputs/c is {reason}\n"
    stopped = make_run("d", 9, steps=600, finished=False, kind="last")
    assert find_checkpoint(None) == stopped
    assert find_checkpoint("outputs/b") == second


def test_runs_of_tasks_are_of_another_kind():
    with pytest.raises(UserError, match=r"no fine-tuned run under outputs/; python scripts/finetune\.py"):
        newest_run(fine_tuned=True)
    make_run("language", 1, steps=600)
    make_run("task", 2, steps=30, test_accuracy=0.9)
    assert (newest_run(), newest_run(fine_tuned=True)) == ("outputs/language", "outputs/task")


def test_last_is_the_newest_run_that_has_neither_ended_nor_is_at_work():
    for time, name in enumerate(("interrupted", "training", "ended"), start=1):
        folder = make_run(name, time, steps=9, finished=name == "ended").parents[1]
        (folder / "run.json").touch()
        os.utime(folder / "run.json", (time, time))
    with FileLock("outputs/training/.lock"):
        assert find_unfinished("last") == Path("outputs/interrupted")
        Path("outputs/interrupted/error.txt").touch()
        with pytest.raises(UserError, match="no unfinished run under outputs/, and another process is train"):
            find_unfinished("last")
    assert find_unfinished("last") == Path("outputs/training")


def test_checkpoints_that_no_run_here_wrote_are_passed_over():
    with pytest.raises(UserError, match="no run in it; train one first"):
        list_runs()
    foreign = Path("outputs/a/None/version_None/checkpoints/epoch=0-step=4.ckpt")
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    with pytest.raises(UserError, match=r"no run under outputs/; train one first: .* --pretrained"):
        find_checkpoint(None)
    run = Path("outputs/a/checkpoints/last.safetensors")  # not validated yet, so nothing else is known of it
    run.parent.mkdir()
    run.touch()
    Path("outputs/a/config.yaml").touch()
    assert find_checkpoint(None) == run


def test_list_has_the_newest_first_in_80_columns():
    make_run("2026-11-24_21-39-16_small", 1, steps=2000)
    make_run("2026-11-25_21-39-16_tiny_arch-gpt1_seed-2", 2, steps=100, finished=False)
    make_run("bytes", 3, steps=10, final_bits_per_char=4.0 / math.log(2))  # a character has two bytes
    make_run("task", 4, steps=30, test_accuracy=0.9, final_bits_per_char=1.0)
    (Path("outputs") / "nothing").mkdir()
    (make_run("damaged", 0, steps=9).parents[1] / "result.json").write_text("{")
    *lines, mark, _ = [line.split() for line in list_runs().splitlines()]
    assert mark == ["*:", "has", "not", "ended"]
    found = [(line[0], line[1], " ".join(line[4:])) for line in lines[1:]]
    assert found == [
        ("3.5000", "10", "outputs/bytes"),
        ("2.5000", "100", "outputs/2026-11-25_21-39-16_tiny_arch-gpt1_seed-2 *"),
        ("1.7500", "2,000", "outputs/2026-11-24_21-39-16_small"),
        ("-", "0", "outputs/damaged"),
    ]
    assert max(map(len, list_runs().splitlines())) <= 80


def test_age_is_in_its_largest_unit():
    ages = {-5: "0 s", 90: "90 s", 300: "5 min", 7300: "2 h", 4e5: "5 days"}
    assert {seconds: age(seconds) for seconds in ages} == ages
