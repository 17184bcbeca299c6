"""Draw the losses of a run:  python dev/plot_run.py outputs/RUN curve.png"""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NOTEBOOK, BABY_GPT = 1.5407, 1.4697  # published validation losses


def column(rows: list[dict[str, str]], name: str) -> tuple[list[int], list[float]]:
    """Steps, counted from 1 as on the progress bar, and values where there is one."""
    points = [(int(row["step"]) + 1, float(row[name])) for row in rows if row[name]]
    return [step for step, _ in points], [value for _, value in points]


def draw(run: Path, picture: Path) -> None:
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    figure, axes = plt.subplots(figsize=(8, 4), dpi=120)
    steps, losses = column(rows, "train/loss")
    axes.plot(steps, losses, color="0.8", linewidth=0.5)
    window = max(1, len(losses) // 100)
    smooth = [sum(losses[i - window : i]) / window for i in range(window, len(losses) + 1)]
    axes.plot(steps[window - 1 :], smooth, color="0.45", linewidth=1, label=f"train/loss, mean of {window} batches")
    axes.plot(*column(rows, "val/loss"), color="tab:red", linewidth=1.5, label="val/loss, exact")
    for value, name in ((NOTEBOOK, "notebook"), (BABY_GPT, "baby GPT")):
        axes.axhline(value, color="tab:blue", linewidth=0.8, linestyle=":")
        beside = axes.get_yaxis_transform()  # x in shares of the picture, y in nats
        axes.text(1.01, value, f"{name} {value}", transform=beside, va="center", fontsize=7, color="tab:blue")
    axes.set(xlabel="step", ylabel="loss (nats per character)", ylim=(0.8, 2.4))
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(picture)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
