"""Which run is taken if none is named, and the list of runs."""

import json
import os
from pathlib import Path

import pytest

from gpt.cli.runs import age, find_checkpoint, list_runs
from gpt.settings import UserError


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make_run(name: str, time: int, steps: int, finished: bool = True, kind: str = "best") -> Path:
    """A run as `read_run` reads it, whose last checkpoint was written `time` seconds after 1970."""
    folder = Path("outputs") / name
    checkpoint = folder / "checkpoints" / f"{kind}.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (folder / "config.yaml").write_text("model: {n_layer: 2}\nseed: 1\n")
    (folder / "metrics.csv").write_text(f"step,val/loss\n0,3.5\n{steps - 1},2.5\n")
    if finished:
        numbers = ("final_val_loss", "final_bits_per_char", "vocab_size", "parameters", "seconds")
        result = dict.fromkeys(numbers, 2.0) | {"step": steps, "best_val_loss": 1.75, "best_step": steps}
        (folder / "result.json").write_text(json.dumps(result))
    os.utime(checkpoint.parent, (time, time))
    return checkpoint


def test_without_runs_the_message_names_the_pretrained_model():
    with pytest.raises(UserError, match=r"no run under outputs/; train one first: .* --pretrained"):
        find_checkpoint(None)


def test_newest_run_of_500_steps_is_taken_and_the_reason_told(capsys):
    first = make_run("sweeps/s/a", 1, steps=4)
    assert find_checkpoint(None) == first
    second = make_run("b", 2, steps=200)
    assert find_checkpoint(None) == second  # there is no longer one
    assert capsys.readouterr().err == "note: outputs/sweeps/s/a is the newest run\nnote: outputs/b is the newest run\n"
    long = make_run("c", 1, steps=2000)
    assert find_checkpoint(None) == long
    reason = "the newest run of at least 500 steps (2,000); outputs/b is newer, but shorter"
    assert capsys.readouterr().err == f"note: outputs/c is {reason}\n"
    stopped = make_run("d", 9, steps=600, finished=False, kind="last")
    assert find_checkpoint(None) == stopped
    assert find_checkpoint("outputs/b") == second


def test_checkpoints_that_no_run_here_wrote_are_passed_over():
    foreign = Path("outputs/a/None/version_None/checkpoints/epoch=0-step=4.ckpt")
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    with pytest.raises(UserError, match="no run under outputs"):
        find_checkpoint(None)
    run = Path("outputs/a/checkpoints/last.ckpt")  # not validated yet, so nothing else is known of it
    run.parent.mkdir()
    run.touch()
    assert find_checkpoint(None) == run


def test_list_has_the_newest_first_in_80_columns():
    make_run("2026-11-24_21-39-16_small", 1, steps=2000)
    make_run("2026-11-25_21-39-16_tiny_arch=gpt1,seed=2", 2, steps=100, finished=False)
    (Path("outputs") / "damaged").mkdir()
    (Path("outputs") / "damaged" / "config.yaml").write_text("{")
    lines = list_runs().splitlines()
    assert [line.split()[:2] for line in lines[:3]] == [["loss", "steps"], ["2.5000", "100"], ["1.7500", "2,000"]]
    assert lines[1].split()[-1] == "outputs/2026-11-25_21-39-16_tiny_arch=gpt1,seed=2"
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(("seconds", "text"), [(-5, "0 s"), (90, "90 s"), (300, "5 min"), (7300, "2 h"), (4e5, "5 days")])
def test_age_is_in_its_largest_unit(seconds, text):
    assert age(seconds) == text
