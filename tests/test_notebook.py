"""The derivation notebook runs from a clean kernel, and its committed outputs are those of its committed code."""

import math
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from run_notebook import NOTEBOOK, code_cells, code_sha256, execute

COMMITTED = nbformat.read(NOTEBOOK, as_version=4)
CODE = code_cells(COMMITTED)
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def text(cell: NotebookNode) -> str:
    """What a cell printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def depends_on_steps(cell: NotebookNode) -> bool:
    return "trained" in cell.metadata.get("tags", [])


def same(ours: str, theirs: str) -> bool:
    """Equal words, and numbers equal within rounding on another processor."""
    if NUMBER.sub("#", ours).split() != NUMBER.sub("#", theirs).split():
        return False
    numbers = [[float(found.replace(",", "")) for found in NUMBER.findall(part)] for part in (ours, theirs)]
    return all(math.isclose(a, b, rel_tol=0.02, abs_tol=2e-3) for a, b in zip(*numbers, strict=True))


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> list[NotebookNode]:
    """The code cells of a copy, executed with short trainings; an error or a failing assert in it fails here."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    execute(notebook, tmp_path_factory.mktemp("notebook"), STEPS="12")
    return code_cells(notebook)


def test_it_runs_and_prints_what_was_committed(short):
    compared = 0
    for ran, cell in zip(short, CODE, strict=True):
        kinds = [[output.output_type for output in one.outputs] for one in (ran, cell)]
        assert kinds[0] == kinds[1], cell.source
        if text(cell) and not depends_on_steps(cell):
            assert same(text(ran), text(cell)), f"{cell.source}\n\nnow:\n{text(ran)}\ncommitted:\n{text(cell)}"
            compared += 1
    assert compared >= 20


def test_the_comparison_can_fail():
    assert same("loss 2.500 after 1,000 steps, 3e-07", "loss  2.501 after 1,000 steps, 9e-07")
    assert not same("loss 2.500", "loss 2.600")
    assert not same("loss 2.500", "gain 2.500")
    assert not same("1 2", "1")


def test_outputs_are_of_this_code():
    assert COMMITTED.metadata.get("code_sha256") == code_sha256(COMMITTED), (
        "the code changed since the outputs: run make notebook"
    )


def test_outputs_are_there():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    for cell in CODE:
        assert not ("print(" in cell.source and "def " not in cell.source and not text(cell)), cell.source
        images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(images) == cell.source.count("plt.show()"), cell.source
        assert all(output.output_type != "error" and output.get("name") != "stderr" for output in cell.outputs), cell.source


def test_form():
    sources = "\n".join(cell.source for cell in CODE)
    assert all(len(cell.source.splitlines()) <= 15 for cell in CODE)
    for name in ("train", "generate"):
        assert len(re.findall(rf"^\s*def {name}\(", sources, re.MULTILINE)) == 1
    headings = re.findall(
        r"^## (\d+)\. ", "\n".join(c.source for c in COMMITTED.cells if c.cell_type == "markdown"), re.MULTILINE
    )
    assert headings == [str(step) for step in range(1, 14)]
    assert sources.count("assert ") >= 50


def test_it_is_small_and_says_nothing_of_the_machine():
    content = NOTEBOOK.read_text(encoding="utf-8")
    assert len(content.encode()) < 1_000_000
    for cell in COMMITTED.cells:
        shown = cell.source + (text(cell) if cell.cell_type == "code" else "")
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|usr|opt|var|mnt|work|Users)\b", shown), cell.source
    for target in re.findall(r"\]\(([^)#]+)\)", "\n".join(c.source for c in COMMITTED.cells if c.cell_type == "markdown")):
        assert target.startswith("https://") or (Path(NOTEBOOK).parent / target).exists(), target
