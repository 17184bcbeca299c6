"""metrics.csv: every number that a run logs, in a file that a spreadsheet opens."""

import csv
import io
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from gpt.checkpoint import write_text


class MetricsFile(Logger):
    """A row for each thing logged, with empty cells where it says nothing; step counts from 0, as Lightning does.

    Lightning's CSVLogger appends to its file and deletes what is there at the start. This one is written whole, with each
    checkpoint and at the end, and goes on where a resumed run's checkpoint was.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = Path(path)
        self.rows: list[dict[str, Any]] = []

    def resume(self, step: int) -> None:
        """Take over what an earlier process has written of the first `step` steps."""
        if self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["step"]) < step]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append({"step": step} | dict(metrics))

    def save(self) -> None:
        """Lightning asks for it at each logged step, which is too often for a whole file."""

    @rank_zero_only
    def write(self) -> None:
        text = io.StringIO()
        columns = ["step", *sorted({key for row in self.rows for key in row} - {"step"})]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.rows:
            self.write()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """They are in config.yaml."""

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> None:
        return None
