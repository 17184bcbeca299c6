import json
import math
import subprocess
import sys

import pytest

import benchmark
from gpt.settings import UserError


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


def test_ratio_ignores_a_load_that_passes_by():
    assert benchmark.median_ratio([1, 10, 1], [2, 20, 2]) == 0.5
    assert benchmark.median_ratio([1, 10, 1], [2, 2, 2]) == 0.5


def test_table():
    rows = [benchmark.Row("speed", 3.0, "x"), benchmark.Row("  loss", math.inf, "s"), benchmark.Row("size", 12345.6, "MiB")]
    assert benchmark.table(rows).splitlines()[2:] == [
        "| speed | 3 x |",
        "| &nbsp;&nbsp;loss | never |",
        "| size | 12,346 MiB |",
    ]


def test_header_names_the_processor_and_says_when_other_programs_were_running(monkeypatch):
    capabilities = {"cpu_name": "Some CPU", "avx2": True, "avx512_f": True, "avx512_bf16": False}
    monkeypatch.setattr(benchmark.torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(benchmark.os, "cpu_count", lambda: 2)
    assert "2 cores, Some CPU (AVX2, AVX-512), torch" in benchmark.describe_machine()
    assert "cannot be trusted" not in benchmark.describe_load(0.1, 2.4)
    assert "Other programs were running on these 2 cores" in benchmark.describe_load(0.1, 2.6)
    assert "Other programs were running on these 2 cores" in benchmark.describe_load(3.0, 1.9)


def test_section_is_printed_and_written_as_markdown_and_json(monkeypatch, tmp_path, capsys):
    def loop(options):
        """What is compared."""
        yield benchmark.Row("time", 3.0, "s")
        yield benchmark.Row("time to a loss", math.inf, "s")

    monkeypatch.setitem(benchmark.SECTIONS, "loop", loop)
    benchmark.main(["loop", "--out", str(tmp_path / "bench")])
    report = (tmp_path / "bench" / "bench.md").read_text()
    assert report in capsys.readouterr().out
    assert "## loop\n\nWhat is compared.\n\n| measure | value |" in report
    assert "| time | 3 s |\n| time to a loss | never |" in report
    assert json.loads((tmp_path / "bench" / "bench.json").read_text())["sections"]["loop"] == [
        {"measure": "time", "value": 3.0, "unit": "s"},
        {"measure": "time to a loss", "value": None, "unit": "s"},
    ]


def test_unknown_section_is_refused(tmp_path):
    with pytest.raises(UserError, match="SECTION = speed: unknown; choose among throughput, loop"):
        benchmark.main(["speed", "--out", str(tmp_path)])


def test_bare_step_trains(text):
    step = benchmark.BareStep("model=tiny", "model.n_embd=16", "model.context_length=16", f"data.path={text}")
    before = step.module.model.head.weight.clone()
    step()
    assert step.config.tokens_per_batch == 4 * 16
    assert not (step.module.model.head.weight == before).all()


def test_worker_steps_in_its_own_process_and_ends_silently(monkeypatch, capfd):
    monkeypatch.setattr(benchmark, "PRODUCTS", 1)
    with benchmark.Worker("matrix", "float32") as worker:
        worker()
        worker()
    assert worker.peak_memory > 1
    assert worker.process.returncode == 0
    assert capfd.readouterr() == ("", "")


def test_worker_ends_silently_when_the_benchmark_is_killed():
    program = "import benchmark, os; worker = benchmark.Worker('matrix', 'float32'); worker(); os._exit(0)"
    folder = str(benchmark.Path(benchmark.__file__).parent)
    ended = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")  # of both processes: `run` waits until all have closed these streams
