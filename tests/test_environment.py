"""Differences between machines that must not matter: cores, locale, home folder, compiler, closed streams."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from conftest import ROOT, TINY, read_result, start

TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py"), *TINY, "trainer.max_steps=2"]
TRAIN += ["hydra.run.dir=run"]
SAMPLE = [sys.executable, str(ROOT / "scripts" / "sample.py"), "run", "--prompt", "π", "--tokens", "5"]
NOWHERE = dict.fromkeys(["HOME", "XDG_CACHE_HOME", "PATH"], "/proc/nowhere")
ENVIRONMENTS = {  # and how the letter π is shown there; on a POSIX locale that depends on the system
    "no home, no compiler": (NOWHERE | {"CXX": "", "CC": "", "TERM": "dumb", "COLUMNS": "20"}, "π"),
    "another time zone, no UTF-8": ({"TZ": "Pacific/Chatham", "PYTHONIOENCODING": "ascii"}, "\\u03c0"),
    "plain locale": ({"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ""),
}


def run(command: list[str], folder: Path, changes: dict[str, str] | None = None, **options):
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (changes or {})
    pipes = {"capture_output": True, "text": True, "timeout": 120}
    return subprocess.run(command, cwd=folder, env=environment, **pipes, **options)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> tuple[list[str], float]:
    """The command that trains two steps, and the loss after them."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "text.txt").write_text("ROMEO: But soft, what light?\nJULIET: O me, π.\n" * 200)
    command = [*TRAIN, f"data.path={folder / 'text.txt'}"]
    done = run(command, folder)
    assert done.returncode == 0, done.stderr
    return command, read_result(folder / "run")["final_val_loss"]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_environment_changes_nothing(name, expected, tmp_path):
    """On one core, and where no compiler is, a run says so and trains."""
    (command, loss), (environment, shown) = expected, ENVIRONMENTS[name]
    cores = sorted(getattr(os, "sched_getaffinity", lambda _: ())(0))
    limit = (lambda: os.sched_setaffinity(0, cores[:1])) if cores else None
    lacks_compiler = "no compiler" in name
    more = ["trainer.compile=true"] if lacks_compiler else []
    done = run([*command, *more], tmp_path, environment, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert ("not compiled: there is no C++ compiler" in done.stdout) is lacks_compiler
    assert read_result(tmp_path / "run")["final_val_loss"] == loss
    done = run(SAMPLE, tmp_path, environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(shown)


# The last two columns: what stderr begins with, and how many threads train. More add in another order
CLOSED = [(">&- <&-", "", "2"), ("2>&-", "", "4"), ("| head -n 1", "", "1")]
CLOSED += [("> /dev/full", "error: output = (standard output): No space left on device; make room", "1")]


@pytest.mark.parametrize(("ending", "said", "threads"), CLOSED)
def test_closed_streams_give_no_traceback_with_any_threads(ending, said, threads, expected, tmp_path):
    command, loss = expected
    done = run(["bash", "-c", f"{shlex.join(command)} {ending}"], tmp_path, {"OMP_NUM_THREADS": threads})
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    if said:
        assert done.returncode == 2
    elif "head" not in ending:  # which may end the run early
        assert read_result(tmp_path / "run")["final_val_loss"] == pytest.approx(loss, abs=1e-4)


def test_interrupt_at_the_start_is_one_line_and_leaves_nothing(expected, tmp_path):
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # `nohup` or a script's & would ignore it
    process = start("train.py", *expected[0][2:], cwd=tmp_path, preexec_fn=listen)
    # It imports PyTorch, which takes a while
    while process.poll() is None and "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.count("\n") <= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "scripts").glob("*.py")))
def test_without_the_environment_a_program_says_how_to_activate_it(script, tmp_path):
    done = run([sys.executable, "-I", "-S", str(ROOT / "scripts" / script)], tmp_path)
    line = "error: No module named 'gpt'; activate the environment: source .venv/bin/activate\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_run_whose_folder_is_removed_ends_in_one_line(expected, tmp_path):
    long = ["trainer.max_steps=100000", "trainer.val_check_interval=100", "logger=csv"]
    with start("train.py", *expected[0][2:], *long, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not list(tmp_path.glob("run/checkpoints/last.*")):
            time.sleep(0.05)
        (tmp_path / "run").rename(tmp_path / "moved")
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch(r"error: run_dir = .*run: it was removed or renamed while .*\n", err), err


# An installed copy, from a wheel and without the repository: its programs, and conf/ inside it


ABOUT = """
import gpt, gpt.cli.overrides, importlib.metadata
print(gpt.__file__, gpt.cli.overrides.CONF)
for program in importlib.metadata.distribution("gpt-from-scratch").entry_points:
    print(program.name, callable(program.load()))
"""
PROGRAMS = {"train", "finetune", "sample", "evaluate", "compare", "report", "tune", "classify"}
PROGRAMS |= {"export-hf", "export-html"}


def install(folder: Path) -> Path:
    """A folder with the project installed. Building writes next to the sources, so it is given a copy."""
    pytest.importorskip("setuptools", reason="no setuptools here")
    source, wheels, site = (folder / name for name in ("source", "wheels", "site"))
    for name in ("gpt", "scripts", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", source, "--no-deps", "--no-build-isolation", "-w", wheels], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", site, wheel], check=True)
    return site


def test_installed_copy_trains_and_samples_in_an_empty_folder(tmp_path_factory, tmp_path, text):
    site, place = install(tmp_path_factory.mktemp("installed")), tmp_path / "empty"
    place.mkdir()

    def installed(program: str | Path, *arguments: str) -> str:
        done = run([site / "bin" / program, *arguments], place, {"PYTHONPATH": str(site)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    about, *programs = installed(sys.executable, "-c", ABOUT).splitlines()
    assert about == f"{site / 'gpt' / '__init__.py'} {site / 'gpt' / 'conf'}"
    assert {*programs} == {f"gpt-{name} True" for name in PROGRAMS}
    assert "n_embd: 160" in installed("gpt-train", "--cfg", "job")
    assert "--baseline" in installed("gpt-compare", "--help")
    short = [f"data.path={text}", "trainer.max_steps=2", "hydra.run.dir=outputs/run"]
    assert "\n  gpt-sample outputs/run\n" in installed("gpt-train", *TINY, *short)
    sample = installed("gpt-sample", "--prompt", "ROMEO:", "--tokens", "9", "--seed", "1")
    assert sample.startswith("ROMEO:")
    assert [path.name for path in place.iterdir()] == ["outputs"]
