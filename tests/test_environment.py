"""Differences between machines that must not matter: cores, locale, home folder, compiler, closed streams."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ROOT, TINY, read_result

TRAIN = [
    sys.executable,
    str(ROOT / "scripts" / "train.py"),
    *TINY,
    "trainer.max_steps=2",
    "hydra.run.dir=run",
]
SAMPLE = [sys.executable, str(ROOT / "scripts" / "sample.py")]
ENVIRONMENTS = {
    "plain": {},
    "no home": {"HOME": "/proc/nowhere", "XDG_CACHE_HOME": "/proc/nowhere", "MPLCONFIGDIR": ""},
    "plain locale": {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "another time zone": {"TZ": "Pacific/Chatham"},
    "no terminal": {"TERM": "dumb", "COLUMNS": "20"},
    "no compiler": {"PATH": "/nowhere", "CXX": "", "CC": ""},
    "a terminal without UTF-8": {"PYTHONIOENCODING": "ascii"},
}


def run(command: list[str], folder: Path, changes: dict[str, str] | None = None, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (changes or {})
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, timeout=120, **options
    )


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> tuple[Path, float]:
    """A text, and the loss of two steps on it."""
    folder = tmp_path_factory.mktemp("plain")
    text = folder / "text.txt"
    text.write_text("ROMEO: But soft, what light?\nJULIET: O me, π.\n" * 200, encoding="utf-8")
    done = run([*TRAIN, f"data.path={text}"], folder)
    assert done.returncode == 0, done.stderr
    return text, read_result(folder / "run")["final_val_loss"]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environment_changes_nothing(name, expected, tmp_path):
    text, loss = expected
    done = run([*TRAIN, f"data.path={text}"], tmp_path, ENVIRONMENTS[name])
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "run")["final_val_loss"] == loss
    done = run([*SAMPLE, "run", "--prompt", "π", "--tokens", "5"], tmp_path, ENVIRONMENTS[name])
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.startswith("\\u03c0" if "ascii" in str(ENVIRONMENTS[name]) else "π")
        or name == "plain locale"
    )


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a core"
)
def test_one_core_is_enough(expected, tmp_path):
    text, loss = expected
    core = min(os.sched_getaffinity(0))
    done = run([*TRAIN, f"data.path={text}"], tmp_path, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "run")["final_val_loss"] == loss


@pytest.mark.parametrize("threads", ["2", "4"])
def test_any_number_of_threads_trains(expected, tmp_path, threads):
    """More threads add in another order, so only nearly the same loss comes out."""
    text, loss = expected
    done = run([*TRAIN, f"data.path={text}"], tmp_path, {"OMP_NUM_THREADS": threads})
    assert done.returncode == 0, done.stderr
    assert read_result(tmp_path / "run")["final_val_loss"] == pytest.approx(loss, abs=1e-4)


def test_without_a_compiler_a_run_says_so_and_trains(expected, tmp_path):
    command = [*TRAIN, f"data.path={expected[0]}", "trainer.compile=true"]
    done = run(command, tmp_path, ENVIRONMENTS["no compiler"])
    assert done.returncode == 0, done.stderr
    assert "not compiled: there is no C++ compiler" in done.stdout


@pytest.mark.parametrize("ending", [">&-", "<&-", "2>&-", "| head -n 1", "> /dev/full"])
def test_closed_streams_give_no_traceback(expected, tmp_path, ending):
    command = f"{shlex.join([*TRAIN, f'data.path={expected[0]}'])} {ending}"
    done = run(["bash", "-c", command], tmp_path)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    if ending == "> /dev/full":
        assert done.returncode == 2
        assert done.stderr.startswith("error: output = (standard output): No space left on device; make room")


@pytest.mark.parametrize("seconds", [0.2, 1.6])
def test_interrupt_at_the_start_is_one_line_and_leaves_nothing(expected, tmp_path, seconds):
    command = [*TRAIN, f"data.path={expected[0]}", "trainer.max_steps=1000000"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (
        "Traceback" not in err or seconds == 0.2
    )  # while Python and Hydra are loaded, nothing catches it yet
    if "characters for training" not in out:
        assert not list(tmp_path.iterdir())
