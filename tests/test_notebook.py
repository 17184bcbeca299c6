"""The derivation notebook runs in a new kernel, and its stored outputs are those of its stored code."""

import math
import re

import matplotlib.pyplot as plt
import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from run_notebook import NOTEBOOK, PNG, code_cells, code_sha256, execute

STORED = nbformat.read(NOTEBOOK, as_version=4)
CODE = code_cells(STORED)
SOURCES = "\n".join(cell.source for cell in CODE)
MARKDOWN = "\n".join(cell.source for cell in STORED.cells if cell.cell_type == "markdown")
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n((?s:.*?))\n```\n\n</details>")
NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
MUTATIONS = {  # a common mistake: the cell that makes it, what is changed there, and the cell that catches it
    "scores divided by D": ("cell-064", "math.sqrt(D)", "D", "cell-066"),
    "the mask one step too late": ("cell-057", ".triu(1)  #", ".triu(2)  #", "cell-057"),
    "one matrix for query and key": ("cell-064", "self.key(x)) @", "self.query(x)) @", "step4-backward"),
    "heads cut by a view": ("cell-089", "permute(2, 0, 3, 1, 4)", "reshape(3, B, self.H, T, -1)", "cell-093"),
    "embeddings not scaled": ("step6-sqrt", "shared_table * math.sqrt(C)", "shared_table", "step6-sqrt"),
    "the variance of a sample": ("cell-116", "unbiased=False", "unbiased=True", "cell-116"),
    "Adam without bias correction": ("cell-157", "(1 - beta1**k)", "1", "cell-164"),
}


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


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
    """The cells, and after each exercise its solutions, which leave variables and random numbers alone."""
    result = []
    for cell in cells:
        result.append(cell)
        if cell.cell_type == "markdown":
            for solution in SOLUTION.findall(cell.source):
                code = f"with torch.random.fork_rng():\n    exec({solution!r}, dict(globals()))"
                result.append(new_code_cell(code, metadata={"tags": ["solution"]}))
    return result


def once_more(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Copies of all code but trainings, from the last to the first, as if one returned to each cell alone."""
    kept = [cell for cell in cells if cell.cell_type == "code" and "trained" not in tags(cell)]
    again = [(cell, {"tags": ["again"], "first": cell.id}) for cell in reversed(kept)]
    return [new_code_cell(cell.source, metadata=metadata) for cell, metadata in again]


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> list[NotebookNode]:
    """The code cells of a copy that ran with short trainings, with solutions, and then all once more.

    Any error fails here, even in a solution, and even if it comes only after *Run all*.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    notebook.cells = with_solutions(notebook.cells)
    notebook.cells += once_more(notebook.cells)
    execute(notebook, tmp_path_factory.mktemp("notebook"), STEPS="12")
    return code_cells(notebook)


def test_notebook_runs_and_prints_what_is_stored(executed):
    compared, ran_cells = 0, [cell for cell in executed if not tags(cell) & {"solution", "again"}]
    for ran, stored in zip(ran_cells, CODE, strict=True):
        kinds = [[output.output_type for output in cell.outputs] for cell in (ran, stored)]
        assert kinds[0] == kinds[1], stored.source
        if printed(stored) and "trained" not in tags(stored):  # a longer training differs
            shown = f"{stored.source}\n{printed(ran)}\n{printed(stored)}"
            assert is_same(printed(ran), printed(stored)), shown
            compared += 1
    assert compared >= 20


def test_every_cell_prints_the_same_when_one_returns_to_it(executed):
    first = {cell.id: cell for cell in executed}
    for cell in executed:
        if "again" in tags(cell):
            assert is_same(printed(cell), printed(first[cell.metadata["first"]])), cell.source


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib, about tensors
def test_common_mistakes_are_caught(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPS", "12")
    cells = [cell for cell in CODE if not tags(cell) & {"trained", "drawing"}]
    names, caught = {"show": lambda description: plt.close()}, {}
    for place, cell in enumerate(cells):
        for mistake, (where, right, wrong, _) in MUTATIONS.items():
            if where == cell.id:
                assert right in cell.source, mistake
                changed, then = dict(names), [cell.source.replace(right, wrong)]
                then += [later.source for later in cells[place + 1 :]]
                for later, source in zip(cells[place:], then, strict=True):
                    try:
                        exec(source, changed)
                    except (AssertionError, RuntimeError):  # from autograd, if a matrix is not used
                        caught[mistake] = later.id
                        break
        if len(caught) == len(MUTATIONS):
            break
        exec(cell.source, names)
    assert caught == {mistake: catches for mistake, (*_, catches) in MUTATIONS.items()}


def test_comparison_finds_differences():
    assert is_same("loss 2.500 after 1,000 steps, 3e-07", "loss  2.501 after 1,000 steps, 9e-07")
    assert not is_same("loss 2.500", "loss 2.600")
    assert not is_same("loss 2.500", "gain 2.500")
    assert not is_same("1 2", "1")


def test_stored_outputs_belong_to_stored_code():
    assert STORED.metadata.get("code_sha256") == code_sha256(STORED), "changed since it ran: make notebook"


def test_every_cell_has_its_outputs_and_every_picture_a_description():
    assert [cell.execution_count for cell in CODE] == list(range(1, len(CODE) + 1))
    for cell in CODE:
        if re.search(r"^print\(", cell.source, re.MULTILINE):
            assert printed(cell), cell.source
        pictures = [output for output in cell.outputs if PNG in output.get("data", {})]
        assert len(pictures) == len(re.findall(r"^show\(", cell.source, re.MULTILINE)), cell.source
        assert all(len(picture.metadata[PNG]["alt"]) > 40 for picture in pictures)
        assert not [out for out in cell.outputs if out.output_type == "error" or "stderr" in str(out)]


def test_cells_are_short_and_steps_are_checked():
    for cell in CODE:
        if "drawing" not in tags(cell):  # what describes a picture isn't code
            code = re.sub(r"^show\(.*?^\)", "show()", cell.source, flags=re.MULTILINE | re.DOTALL)
            assert len(code.splitlines()) <= 15, cell.source
    assert SOURCES.count("assert ") >= 50


def test_there_are_thirteen_steps_each_with_exercises_and_a_cell_for_the_answer():
    assert re.findall(r"^## (\d+)\. ", MARKDOWN, re.MULTILINE) == [str(step) for step in range(1, 14)]
    steps = re.split(r"^## (?=\d+\. )", MARKDOWN, flags=re.MULTILINE)[1:]
    assert all(len(SOLUTION.findall(step)) == step.count("**Exercise** (★") >= 1 for step in steps)
    for cell, following in zip(STORED.cells, STORED.cells[1:], strict=False):
        if "**Exercise**" in cell.source:
            assert "exercise" in tags(following)


def test_links_lead_somewhere():
    headings = re.findall(r"^#+ (.*)", MARKDOWN, re.MULTILINE)
    for target in re.findall(r"\]\(([^)]+)\)", MARKDOWN):
        if target.startswith("#"):
            assert target[1:].replace("-", " ") in [heading.replace("-", " ") for heading in headings], target
        elif not target.startswith(("https://", "attachment:")):
            assert (NOTEBOOK.parent / target).exists(), target


def test_notebook_is_small_and_says_nothing_about_the_machine():
    assert NOTEBOOK.stat().st_size < 1_500_000
    for cell in STORED.cells:
        shown = cell.source + (printed(cell) if cell.cell_type == "code" else "")
        assert not re.search(r"(?<![\w.:/])/(home|root|tmp|usr|opt|var|mnt|work|Users)\b", shown), cell.source
