"""The derivation notebook runs in a new kernel, and its stored outputs are those of its stored code."""

import math
import re

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from run_notebook import NOTEBOOK, code_cells, code_sha256, execute

STORED = nbformat.read(NOTEBOOK, as_version=4)
CODE = code_cells(STORED)
SOURCES = "\n".join(cell.source for cell in CODE)
MARKDOWN = "\n".join(cell.source for cell in STORED.cells if cell.cell_type == "markdown")
SOLUTION = re.compile(
    r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n</details>", re.DOTALL
)
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")


def printed(cell: NotebookNode) -> str:
    """What a cell has printed."""
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def is_same(ours: str, theirs: str) -> bool:
    """Whether two texts have the same words, and numbers that differ by no more than rounding elsewhere."""
    if NUMBER.sub("#", ours).split() != NUMBER.sub("#", theirs).split():
        return False
    numbers = [[float(number.replace(",", "")) for number in NUMBER.findall(text)] for text in (ours, theirs)]
    return all(math.isclose(a, b, rel_tol=0.02, abs_tol=2e-3) for a, b in zip(*numbers, strict=True))


def with_solutions(cells: list[NotebookNode]) -> list[NotebookNode]:
    """The cells, and after each exercise its solution, which leaves variables and random numbers alone."""
    result = []
    for cell in cells:
        result.append(cell)
        if cell.cell_type == "markdown":
            for solution in SOLUTION.findall(cell.source):
                code = f"with torch.random.fork_rng():\n    exec({solution!r}, dict(globals()))"
                result.append(new_code_cell(code, metadata={"tags": ["solution"]}))
    return result


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> list[NotebookNode]:
    """The code cells of a copy that ran with short trainings. Any error fails here, even in a solution."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    notebook.cells = with_solutions(notebook.cells)
    execute(notebook, tmp_path_factory.mktemp("notebook"), STEPS="12")
    return [cell for cell in code_cells(notebook) if "solution" not in cell.metadata.get("tags", [])]


def test_notebook_runs_and_prints_what_is_stored(executed):
    compared = 0
    for ran, stored in zip(executed, CODE, strict=True):
        kinds = [[output.output_type for output in cell.outputs] for cell in (ran, stored)]
        assert kinds[0] == kinds[1], stored.source
        if printed(stored) and "trained" not in stored.metadata.get("tags", []):  # a longer training differs
            assert is_same(printed(ran), printed(stored)), (
                f"{stored.source}\n{printed(ran)}\n{printed(stored)}"
            )
            compared += 1
    assert compared >= 20


def test_comparison_finds_differences():
    assert is_same("loss 2.500 after 1,000 steps, 3e-07", "loss  2.501 after 1,000 steps, 9e-07")
    assert not is_same("loss 2.500", "loss 2.600")
    assert not is_same("loss 2.500", "gain 2.500")
    assert not is_same("1 2", "1")


def test_stored_outputs_belong_to_stored_code():
    assert STORED.metadata.get("code_sha256") == code_sha256(STORED), (
        "changed after it ran: run make notebook"
    )


def test_every_cell_has_its_outputs():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    for cell in CODE:
        if "print(" in cell.source and "def " not in cell.source:
            assert printed(cell), cell.source
        images = [output for output in cell.outputs if "image/png" in output.get("data", {})]
        assert len(images) == cell.source.count("plt.show()"), cell.source
        failed = [
            output for output in cell.outputs if output.output_type == "error" or "stderr" in str(output)
        ]
        assert not failed, cell.source


def test_cells_are_short_and_steps_are_checked():
    cells = [cell for cell in CODE if "drawing" not in cell.metadata.get("tags", [])]
    assert max(len(cell.source.splitlines()) for cell in cells) <= 15
    assert SOURCES.count("assert ") >= 50


def test_there_are_thirteen_steps_each_with_an_exercise():
    assert re.findall(r"^## (\d+)\. ", MARKDOWN, re.MULTILINE) == [str(step) for step in range(1, 14)]
    steps = re.split(r"^## (?=\d+\. )", MARKDOWN, flags=re.MULTILINE)[1:]
    assert [len(SOLUTION.findall(step)) for step in steps] == [1] * 13
    for name in ("train", "generate"):
        assert len(re.findall(rf"^\s*def {name}\(", SOURCES, re.MULTILINE)) == 1


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", MARKDOWN):
        assert target.startswith("https://") or (NOTEBOOK.parent / target).exists(), target


def test_notebook_is_small_and_says_nothing_about_the_machine():
    assert NOTEBOOK.stat().st_size < 1_000_000
    for cell in STORED.cells:
        shown = cell.source + (printed(cell) if cell.cell_type == "code" else "")
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|usr|opt|var|mnt|work|Users)\b", shown), cell.source
