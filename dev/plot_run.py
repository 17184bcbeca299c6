"""Draw the losses of a run:  python dev/plot_run.py outputs/RUN curve.png"""

import argparse
import csv
import io
import math
from pathlib import Path

from gpt.cli.pictures import PALETTE
from gpt.files import atomic, read_text
from gpt.settings import UserError, user_errors

BASELINES = {"notebook": 1.5407, "baby GPT": 1.4697}  # published validation losses


def read_rows(run: Path) -> list[dict[str, str]]:
    """The rows of the run's metrics.csv. Raises UserError if it is missing or damaged."""
    path = run / "metrics.csv"
    try:
        return list(csv.DictReader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise UserError(f"file = {path}: damaged, {error}; restore it, or draw another run") from None


def column(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Steps, counted from 1 as on the progress bar, and values, where there are any. Raises UserError for anything else."""
    try:
        points = [(int(row["step"]) + 1, float(row[name])) for row in rows if row.get(name)]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"file = metrics.csv: {name} or step is no number somewhere; restore it, or draw another run") from None
    points = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in points], [value for _, value in points]


def draw(run: Path, picture: Path) -> None:
    """Write a picture of training and validation loss against the steps, beside the published losses."""
    from matplotlib.figure import Figure

    rows = read_rows(run)
    steps, losses = column(rows, "train/loss")
    figure = Figure(figsize=(8, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, losses, color="0.8", linewidth=0.5)
    window = max(1, len(losses) // 100)
    smooth = [sum(losses[end - window : end]) / window for end in range(window, len(losses) + 1)]
    axes.plot(steps[window - 1 :], smooth, color="0.45", linewidth=1, label=f"train/loss, mean of {window} batches")
    axes.plot(*column(rows, "val/loss"), color=PALETTE[1], linewidth=1.5, marker=".", label="val/loss, exact")
    for name, loss in BASELINES.items():
        axes.axhline(loss, color=PALETTE[0], linewidth=0.8, linestyle=":")
        beside = axes.get_yaxis_transform()  # x in shares of the picture, y in nats
        axes.text(1.01, loss, f"{name} {loss}", transform=beside, va="center", fontsize=8, color=PALETTE[0])
    axes.set(xlabel="step", ylabel="loss (nats per character)", ylim=(0.8, 2.4))
    axes.legend(frameon=False)
    kind = picture.suffix.lower().lstrip(".")
    with atomic(picture) as file:
        figure.savefig(file, format=kind if kind in ("pdf", "svg") else "png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("picture", type=Path, help="the file to write, such as curve.png")
    options = parser.parse_args()
    draw(options.run, options.picture)


if __name__ == "__main__":
    with user_errors():
        main()
