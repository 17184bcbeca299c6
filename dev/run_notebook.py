"""Execute the derivation notebook in place:  python dev/run_notebook.py

The file changes only if every cell has run. Beside the outputs it is told which code they are of, for tests/test_notebook.py.
"""

import hashlib
import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from gpt.checkpoint import write_text

NOTEBOOK = Path(__file__).parents[1] / "derive-gpt-from-scratch.ipynb"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_sha256(notebook: NotebookNode) -> str:
    """What the outputs depend on, in one number."""
    return hashlib.sha256("\n\0\n".join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def execute(notebook: NotebookNode, folder: Path, **environment: str) -> None:
    """Run all cells in a new kernel that starts in `folder`. Raises CellExecutionError at the first that fails."""
    always = {"OMP_NUM_THREADS": "2"}  # threads decide the order of sums, so the last digits
    always["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, which Lightning imports, about bars that nobody draws
    environment = always | os.environ | environment
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # or what is printed comes in pieces, cut by the clock
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)


if __name__ == "__main__":
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    execute(notebook, NOTEBOOK.parent)
    notebook.metadata = {  # and nothing about the machine
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "code_sha256": code_sha256(notebook),
    }
    write_text(NOTEBOOK, nbformat.writes(notebook) + "\n")
