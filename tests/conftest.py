"""What the tests share: small models, small texts, and the training script called as from a command line."""

import os
import platform
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from omegaconf import OmegaConf
from tensorboard.summary.writer import event_file_writer

import train
from gpt.model import GPT, CausalConv, GPTConfig

ROOT = Path(__file__).parents[1]
# Event files of one process and one second are read in the order of their numbers as texts, in which 10 comes before 9
event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)
ARCHITECTURES = {path.stem: dict(OmegaConf.load(path)) for path in sorted((ROOT / "conf" / "model" / "arch").glob("*.yaml"))}
ARCHITECTURES["rmsnorm"] = ARCHITECTURES["modern"] | {"norm": "rmsnorm"}


def make_config(arch: str = "modern", **changes) -> GPTConfig:
    sizes = dict(vocab_size=11, context_length=16, n_layer=2, n_head=2, n_embd=16, dropout=0.0)
    return GPTConfig(**(sizes | ARCHITECTURES[arch] | changes))


def make_model(arch: str = "modern", seed: int = 0, **changes) -> GPT:
    torch.manual_seed(seed)
    model = GPT(make_config(arch, **changes))
    for module in model.modules():
        if isinstance(module, CausalConv):
            torch.nn.init.normal_(module.weight, std=0.5)  # it starts at zero, which would test nothing
    return model


@pytest.fixture(params=list(ARCHITECTURES))
def arch(request) -> str:
    return request.param


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 8,600 characters with every letter that the prompts of the tests use."""
    path = tmp_path / "text.txt"
    path.write_text("ROMEO: But soft, what light?\nJULIET: O me.\n" * 200, encoding="utf-8")
    return path


# The precision of all tests that don't name their own, so that they mean the same on every machine: make test PRECISION=...
PRECISION = os.environ.get("GPT_TEST_PRECISION", "32-true")
# The smallest model and run, for tests that go through the whole script
TINY = ["model=tiny", "model.n_embd=16", "model.context_length=16", "trainer.accelerator=cpu", "callbacks.samples.tokens=20"]
TINY += [f"trainer.precision={PRECISION}", "trainer.val_check_interval=500"]  # one validation, at the end


@pytest.fixture(autouse=True)
def no_report(request, monkeypatch):
    """Leave report.html out: it takes a second, and hundreds of runs here have no reader. tests/test_analysis.py has it."""
    if "test_analysis" not in request.node.nodeid:
        monkeypatch.setattr("gpt.analysis.report.report_line", lambda folder: "report: (left out)")
        monkeypatch.setattr("gpt.cli.report.report_line", lambda folder: "report: (left out)")


@pytest.fixture(params=["32-true", "bf16-mixed"])
def precision(request) -> str:
    """Each precision that can be trained in, whatever the machine would choose. A CPU without bfloat16 emulates it."""
    return request.param


def pytest_terminal_summary(terminalreporter) -> None:
    """Name in the last lines what could not be checked on this machine, and why."""
    reasons: dict[str, list[str]] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons.setdefault(reason.removeprefix("Skipped: "), []).append(report.nodeid)
    reasons[f"this is Python {platform.python_version()}"] = ["the other versions from 3.11 to 3.13"]
    if not torch.cuda.is_available():
        reasons["no GPU"] = ["trainer=gpu, bfloat16 and torch.compile on a GPU"]
    capability = torch.backends.cpu.get_cpu_capability()
    terminalreporter.section(f"tested in {PRECISION} on a CPU with {capability}, {os.cpu_count()} cores; not checked here")
    for reason, names in sorted(reasons.items()):
        terminalreporter.line(f"{reason}: {len(names)}, {names[0]}" + (" ..." if len(names) > 1 else ""))


@pytest.fixture
def call(tmp_path: Path, monkeypatch, capsys):
    """Call scripts/train.py with arguments, in an empty folder. It returns the exit code, stdout and stderr."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        code = 0
        try:
            train.cli()
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    with mock.patch.dict(os.environ):  # undoes what Lightning sets there for processes that it starts
        yield run


@pytest.fixture
def trained(call, text: Path) -> Path:
    """The folder of a run of four steps."""
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=4", "hydra.run.dir=run")
    assert code == 0, err
    return Path("run").resolve()
