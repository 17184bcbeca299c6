import json

import pytest

import benchmark
from gpt.settings import UserError


def test_things_take_turns_and_the_first_call_does_not_count(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    def thing(name, *seconds):
        calls = iter(seconds)

        def call():
            order.append(name)
            now[0] += next(calls)

        return call

    seconds = benchmark.take_turns({"a": thing("a", 99, 1, 2, 9), "b": thing("b", 99, 4, 4, 4)}, rounds=3)
    assert seconds == {"a": 2, "b": 4}
    assert order == ["a", "b"] * 4


def test_the_table_says_what_was_met_and_what_was_missed():
    rows = [
        benchmark.at_least("speed", 3.0, "x", 4),
        benchmark.at_most("time", 3.0, "s", 4),
        benchmark.at_most("loss", float("inf"), "s", 40),
        benchmark.Row("size", 12345.6, "MiB"),
    ]
    lines = benchmark.table(rows).splitlines()
    assert lines[2] == "| speed | 3 x | >= 4 | **no** |"
    assert lines[3] == "| time | 3 s | <= 4 | yes |"
    assert lines[4] == "| loss | never | <= 40 | **no** |"
    assert lines[5] == "| size | 12,346 MiB |  |  |"


def test_a_section_writes_json_and_markdown(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(benchmark.SECTIONS, "loop", lambda options: [benchmark.at_most("time", 3.0, "s", 4)])
    benchmark.main(["loop", "--out", str(tmp_path / "bench")])
    assert json.loads((tmp_path / "bench" / "bench.json").read_text())["rows"][0]["met"] is True
    assert "| time | 3 s | <= 4 | yes |" in (tmp_path / "bench" / "bench.md").read_text()
    assert "| time | 3 s | <= 4 | yes |" in capsys.readouterr().out


def test_an_unknown_section_is_refused(tmp_path):
    with pytest.raises(UserError, match="SECTION = speed: unknown; choose among throughput, loop"):
        benchmark.main(["speed", "--out", str(tmp_path)])


def test_a_step_of_training_can_be_timed_alone(text):
    step = benchmark.bare_step("model=tiny", "model.n_embd=16", "model.context_length=16", f"data.path={text}")
    before = step.model.head.weight.clone()
    step()
    assert step.characters == 4 * 16
    assert not (step.model.head.weight == before).all()
