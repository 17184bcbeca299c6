"""metrics.csv: every number that a run logs, in a file that a spreadsheet opens."""

import math
import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from gpt.callbacks.run_logger import RunLogger
from gpt.errors import LARGEST_INT, UserError, shorten
from gpt.files import check_replaceable, read_text, write_text

NAME = re.compile(r"[A-Za-z][\w/.-]{0,99}", re.ASCII)  # of a metric, such as val/loss
NUMBER = re.compile(r"-?\d{1,30}(\.\d{1,30})?(e[-+]?\d{1,3})?", re.ASCII)  # as Python prints numbers


class MetricsFile(RunLogger):
    """A row for each call of `log`, with empty cells for other metrics. Steps count from 0, as in TensorBoard.

    Lightning's CSVLogger deletes what it finds in its file. This one goes on where a resumed run's checkpoint was. The file
    is written whole, before each checkpoint and at the end.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.path = run_dir / "metrics.csv"
        check_replaceable(self.path)
        self.rows: list[dict[str, Any]] = []

    def resume(self, step: int) -> None:
        rows = read_rows(self.path) if step and self.path.exists() else []
        self.rows = [row for row in rows if int(row["step"]) < step]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append(
            {"step": step} | {name: value for name, value in metrics.items() if name != "epoch"}
        )  # always 0

    def save(self) -> None:
        """Do nothing: Lightning calls this after each logged step, which is too often to write a whole file."""

    @rank_zero_only
    def write(self) -> None:
        columns = ["step", *sorted({key for row in self.rows for key in row} - {"step"})]
        lines = [columns] + [[str(row.get(column, "")) for column in columns] for row in self.rows]
        write_text(self.path, "".join(",".join(line) + "\n" for line in lines))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.rows:
            self.write()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> None:
        return None


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, without empty cells. The text of each number is kept, so that it is written as it was.

    Raises UserError with the number of the line if the file is anything but a table that `MetricsFile` has written.
    """
    header, *lines = [line.split(",") for line in read_text(path).splitlines()] or [[]]
    if (
        "step" not in header
        or len(set(header)) != len(header)
        or not all(NAME.fullmatch(name) for name in header)
    ):
        raise damaged(path, 1, "not the names of metrics, step among them")
    rows = []
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise damaged(path, number, f"{len(cells)} cells under {len(header)} names")
        row = {name: cell for name, cell in zip(header, cells, strict=True) if cell}
        for name, cell in row.items():
            if not (NUMBER.fullmatch(cell) and math.isfinite(float(cell))):
                raise damaged(path, number, f"{name} is {shorten(cell)}, which is not a number")
        step = row.get("step", "")
        if not (step.isdigit() and int(step) <= LARGEST_INT):
            raise damaged(path, number, f"step is {step or 'missing'}, which is not the number of a step")
        rows.append(row)
    return rows


def damaged(path: Path, line: int, reason: str) -> UserError:
    advice = "restore it, or delete it to go on without its rows"
    return UserError(f"file = {path}, line {line}: {reason}; {advice}")
