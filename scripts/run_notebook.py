"""Execute the derivation notebook in place:  python scripts/run_notebook.py

The file changes only if every cell has run. A checksum of the code is stored with the outputs, by which
tests/test_notebook.py knows whether they belong together.
"""

import base64
import hashlib
import io
import os
from pathlib import Path

try:
    from gpt.files import write_text
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "derive-gpt-from-scratch.ipynb"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "2",  # it decides in which order numbers are added, and so the last digits
    "PYTHONWARNINGS": "ignore:IProgress not found",  # from tqdm, about a progress bar that is never shown
}
PNG = "image/png"


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_sha256(notebook: NotebookNode) -> str:
    """The SHA-256 of all code, on which the outputs depend."""
    return hashlib.sha256("\n\0\n".join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def execute(notebook: NotebookNode, folder: Path, **environment: str) -> None:
    """Run all cells in a new kernel that starts in `folder`. Raises CellExecutionError at the first error."""
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # otherwise what is printed comes in pieces that depend on the clock
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=ENVIRONMENT | os.environ | environment)


def shrink_pictures(notebook: NotebookNode) -> None:
    """Store the pictures with at most 128 colours, in a third of the space, and the whole model in front."""
    for cell in code_cells(notebook):
        for data in (output.data for output in cell.outputs if PNG in output.get("data", {})):
            picture = Image.open(io.BytesIO(base64.b64decode(data[PNG]))).convert("RGB").quantize(128)
            picture.save(smaller := io.BytesIO(), format="png", optimize=True)
            data[PNG] = base64.b64encode(smaller.getvalue()).decode()
            if cell.id == "whole-model":  # as an attachment, since the code that draws it comes later
                notebook.cells[0]["attachments"] = {"whole-model.png": {PNG: data[PNG]}}


if __name__ == "__main__":
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    execute(notebook, NOTEBOOK.parent)
    shrink_pictures(notebook)
    notebook.metadata = {  # which says nothing about the machine
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "code_sha256": code_sha256(notebook),
    }
    write_text(NOTEBOOK, nbformat.writes(notebook) + "\n")
