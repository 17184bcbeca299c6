"""What the tests share: small models, small texts, and the training script called as from a command line."""

import csv
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from gpt.checkpoint import read as read_checkpoint
from gpt.cli.main import train
from gpt.config import ModelConfig
from gpt.errors import user_errors
from gpt.model import GPT, CausalConv

ROOT = Path(__file__).parents[1]
os.environ.setdefault("VIRTUAL_ENV", sys.prefix)  # as in a shell where the environment is activated
FOUND = sorted(ROOT.glob("conf/model/arch/*.yaml"))
ARCHITECTURES = {path.stem: dict(OmegaConf.load(path)) for path in FOUND} | {"rmsnorm": {"norm": "rmsnorm"}}
# The precision of tests that do not name their own, on every machine: make test PRECISION=...
PRECISION = os.environ.get("GPT_TEST_PRECISION", "32-true")
# The smallest model and run, for tests that go through the whole script
TINY = ["model=tiny", "model.n_embd=16", "model.context_length=16", "trainer.accelerator=cpu"]
TINY += ["callbacks.samples.tokens=20", f"trainer.precision={PRECISION}"]
TINY += ["trainer.val_check_interval=500"]  # one validation, at the end
TINY += ["callbacks.attention.text=X"]  # which is not in the texts: a map takes more than half of a run
ONE_LINE = re.compile(r"error: [^\n]+ = [^\n]*: [^\n]+\n")  # what a mistake ends with
LONGEST = ["test_notebook", "test_environment", "test_distributed", "test_resume", "test_tune", "test_docs"]
LONGEST += ["test_sweep", "test_page", "test_contributing", "test_interruption", "test_huggingface"]
# What a result says that does not depend on the time that it took
EXACT = ("best_val_loss", "best_step", "final_val_loss", "final_bits_per_char", "step", "stopped_early")


def make_config(arch: str = "modern", **changes) -> ModelConfig:
    sizes = dict(vocab_size=11, context_length=16, n_layer=2, n_head=2, n_embd=16, dropout=0.0)
    return ModelConfig(**(sizes | ARCHITECTURES[arch] | changes))


def make_model(arch: str = "modern", seed: int = 0, **changes) -> GPT:
    torch.manual_seed(seed)
    model = GPT(make_config(arch, **changes))
    for module in model.modules():
        if isinstance(module, CausalConv):
            torch.nn.init.normal_(module.weight, std=0.5)  # it starts at zero, which would test nothing
    return model


def read_result(folder: str | Path) -> dict[str, Any]:
    return json.loads(Path(folder, "result.json").read_text())


def read_last(folder: str | Path, name: str = "last") -> dict[str, Any]:
    return read_checkpoint(Path(folder, f"checkpoints/{name}.safetensors"))


def read_events(folder: str | Path) -> Any:
    """Everything in TensorBoard's files of a folder."""
    from tensorboard.backend.event_processing import event_accumulator  # which takes a second to import

    every = {"tensors": 0, "scalars": 0, "images": 0}
    events = event_accumulator.EventAccumulator(str(folder), size_guidance=every)
    events.Reload()
    return events


def files_in(folder: str | Path = ".") -> dict[Path, bytes]:
    """All that is in a folder, with what is in the files."""
    return {path: path.read_bytes() if path.is_file() else b"" for path in Path(folder).rglob("*")}


def history(folder: str | Path) -> list[dict[str, str]]:
    """All that a run has logged, but for the speed."""
    with Path(folder, "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if not key.startswith("perf")} for row in rows]


def same(one: Any, other: Any) -> bool:
    """Whether two contents of checkpoints are equal, bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def assert_same_run(parts: str | Path, whole: str | Path) -> None:
    """Two runs have logged the same, and left the same checkpoints and results, to the last bit."""
    assert history(parts) == history(whole)
    for name in ("best", "last"):
        one, other = (read_last(run, name) for run in (parts, whole))
        for content in (one, other):
            for clock in ("throughput", "Timer"):  # the time that it took
                content.get("callbacks", {}).pop(clock, None)
        assert same(one, other)
    one, other = (read_result(run) for run in (parts, whole))
    assert [one[key] for key in EXACT] == [other[key] for key in EXACT]


@pytest.fixture(params=list(ARCHITECTURES))
def arch(request) -> str:
    return request.param


@pytest.fixture(params=["32-true", "bf16-mixed"])
def precision(request) -> str:
    """Each precision that can be trained in, whatever the machine would choose: a CPU emulates bfloat16."""
    return request.param


def write_play(path: Path) -> Path:
    path.write_text("ROMEO: But soft, what light?\nJULIET: O me.\n" * 200, encoding="utf-8")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 8,600 characters with every letter that the prompts of the tests use."""
    return write_play(tmp_path / "text.txt")


@pytest.fixture(autouse=True)
def no_report(monkeypatch) -> None:
    """Leave report.html out, which takes a second. test_analysis.py writes it by itself."""
    for module in ("gpt.cli.summary", "gpt.analysis"):
        monkeypatch.setattr(f"{module}.report_line", lambda folder: "report: (left out)")


def run_program(*arguments: str, main: Callable[[], None] = train, name: str = "train.py") -> int:
    """Run a program of Hydra's in this process and in the current folder, and return its exit code."""
    GlobalHydra.instance().clear()  # an earlier one has left it
    with (
        mock.patch.dict(os.environ),  # undoes what Lightning sets there for processes that it starts
        mock.patch.object(sys, "path", [*sys.path]),  # where a callback of one's own is looked for
        mock.patch.object(sys, "argv", [name, *arguments]),
        mock.patch.object(logging.root, "handlers", [*logging.root.handlers]),  # --info adds some
    ):
        try:
            main()
        except SystemExit as stop:
            return stop.code or 0
        finally:
            logging.root.setLevel(logging.WARNING)
            logging.getLogger("hydra").setLevel(logging.NOTSET)
    return 0


def start(script: str, *arguments: str, **options: Any) -> subprocess.Popen:
    """Start a program of scripts/ in a process of its own."""
    command = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes | options)


@pytest.fixture
def call(tmp_path, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Call scripts/train.py with arguments, in an empty folder: the exit code, stdout and stderr."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str, **program) -> tuple[int, str, str]:
        code = run_program(*arguments, **program)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def small(call, text) -> Callable[..., tuple[int, str, str]]:
    """`call` with the smallest settings and `text` in front of the others, unless a run is resumed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        options = [argument for argument in arguments if argument.startswith("-")]
        settings = [argument for argument in arguments if not argument.startswith("-")]
        is_new = not any(setting.startswith("resume=") for setting in settings)
        return call(*options, *([*TINY, f"data.path={text}"] if is_new else []), *settings)

    return run


@pytest.fixture
def succeed(small) -> Callable[..., str]:
    """`small`, which must end well: returns stdout."""

    def run(*arguments: str) -> str:
        code, out, err = small(*arguments)
        assert code == 0, out + err
        return out

    return run


@pytest.fixture
def refuse(small) -> Callable[..., str]:
    """`small`, which must end with one line on stderr and exit code 2, and leave all files as they are."""

    def run(*arguments: str, may_write: bool = False) -> str:
        before = files_in()
        code, out, err = small(*arguments)
        assert code == 2, out + err
        assert ONE_LINE.fullmatch(err), err
        assert may_write or files_in() == before
        return err

    return run


@pytest.fixture
def refusal(capsys) -> Callable[..., str]:
    """Call the main() of a program of argparse, which must end as in `refuse`."""

    def run(main: Callable[[list[str]], None], *arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop, user_errors():
            main([*arguments])
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (2, "")
        assert ONE_LINE.fullmatch(err), err
        return err

    return run


def train_in(folder: Path, *settings: str) -> Path:
    """Train the smallest model on the text next to a new folder, where one stands: the folder of the run."""
    folder.mkdir()
    write_play(folder.parent / "text.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("gpt.cli.summary.report_line", lambda folder: "report: (left out)")
        assert run_program(*TINY, "data.path=../text.txt", "hydra.run.dir=run", *settings) == 0
    return folder / "run"


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory) -> Path:
    """The folder of a run of four steps, which `trained` copies. Its text is the one next to its folder."""
    return train_in(tmp_path_factory.mktemp("trained") / "work", "trainer.max_steps=4")


@pytest.fixture
def trained(call, text: Path, trained_once: Path) -> Path:
    """The folder of a run of four steps on `text`, which it knows as ../text.txt."""
    shutil.copytree(trained_once, "run")
    return Path("run").resolve()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files, so that several processes end together: one file is one process's."""
    items.sort(key=lambda item: [*LONGEST, item.path.stem].index(item.path.stem))


def pytest_terminal_summary(terminalreporter) -> None:
    """Name in the last lines what could not be checked on this machine, and why."""
    reasons = {f"this is Python {platform.python_version()}": ["the other versions from 3.11 to 3.13"]}
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    if not torch.cuda.is_available():
        reasons["no GPU"] = ["trainer=gpu, bfloat16 and torch.compile on a GPU"]
    machine = f"on a CPU with {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    terminalreporter.section(f"tested in {PRECISION} {machine}; not checked here")
    for reason, names in sorted(reasons.items()):
        terminalreporter.line(f"{reason}: {len(names)}, {names[0]}" + (" ..." if len(names) > 1 else ""))
