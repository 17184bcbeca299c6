"""What scripts/benchmark.py measures takes turns, in processes of their own, and is written down."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

import benchmark
from conftest import TINY
from gpt.errors import UserError


def test_tasks_take_turns_and_the_first_round_does_not_count(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    def task(name, *seconds):
        durations = iter(seconds)

        def call():
            order.append(name)
            now[0] += next(durations)

        return call

    seconds = benchmark.take_turns({"a": task("a", 99, 1, 2, 9), "b": task("b", 99, 4, 4, 4)}, rounds=3)
    assert seconds == {"a": [1, 2, 9], "b": [4, 4, 4]}
    assert order == ["a", "b"] * 4


def test_section_is_printed_and_written_as_markdown_and_json(monkeypatch, tmp_path, capsys):
    def loop(compare):
        """What is compared."""
        yield "time", 3.0, "s"
        yield "  to a loss", math.inf, "s"
        yield "size", 12345.6, "MiB"

    monkeypatch.setitem(benchmark.SECTIONS, "loop", loop)
    benchmark.main(["loop", "--out", str(tmp_path / "bench")])
    report = (tmp_path / "bench" / "bench.md").read_text()
    assert report in capsys.readouterr().out
    assert "## loop\n\nWhat is compared.\n\n| measure | value |" in report
    assert "| time | 3 s |\n| &nbsp;&nbsp;to a loss | never |\n| size | 12,346 MiB |" in report
    rows = [["time", 3.0, "s"], ["  to a loss", None, "s"], ["size", 12345.6, "MiB"]]
    assert json.loads((tmp_path / "bench" / "bench.json").read_text())["sections"] == {"loop": rows}


def test_unknown_section_is_refused(tmp_path):
    with pytest.raises(UserError, match="SECTION = speed: unknown; choose among throughput, loop"):
        benchmark.main(["speed", "--out", str(tmp_path)])


def test_bare_step_trains(text, monkeypatch):
    optimizers, build = [], benchmark.build_optimizer
    keep = lambda *given: optimizers.append(build(*given)) or optimizers[-1]  # noqa: E731
    monkeypatch.setattr(benchmark, "build_optimizer", keep)
    step = benchmark.bare_step(*TINY, f"data.path={text}")
    weights = [weight for group in optimizers[0].param_groups for weight in group["params"]]
    before = [weight.clone() for weight in weights]
    step()
    assert any((old != new).any() for old, new in zip(before, weights, strict=True))


def test_tasks_step_in_processes_of_their_own_that_end_silently_also_when_the_benchmark_is_killed():
    program = """
import benchmark, os
if __name__ == "__main__":
    with benchmark.in_own_process(benchmark.matrix_products, "float32") as step:
        print(step() > 1)
    killed = benchmark.in_own_process(benchmark.matrix_products, "float32")
    print(killed.__enter__()() > 1, flush=True)
    os._exit(0)"""
    command, folder = [sys.executable, "-c", program], Path(benchmark.__file__).parent
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=300)
    # `run` waits until both processes have closed these streams
    assert (ended.stdout, ended.stderr) == ("True\nTrue\n", "")
