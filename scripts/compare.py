"""Compare runs, those of a sweep or any others under a folder: a table, best first, and pictures, written into that folder:

python scripts/compare.py outputs/sweeps/SWEEP
"""

import argparse
import csv
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from omegaconf import OmegaConf

from gpt.settings import UserError, build, decisive, user_errors


@dataclass(frozen=True)
class Run:
    """A run folder, read. `result` is None for a run that failed, was stopped, or has not ended."""

    folder: Path
    settings: dict[str, Any]  # what decides its result: {"model.n_layer": 2, ...}
    result: dict[str, Any] | None
    curve: list[tuple[int, float]]  # steps taken, val/loss
    error: str = "not finished"  # of a run without result

    @property
    def flops(self) -> float:
        """Operations of its training."""
        from gpt.model import GPTConfig, flops_per_token

        model = {key.removeprefix("model."): value for key, value in self.settings.items() if key.startswith("model.")}
        config = build(GPTConfig, model | {"vocab_size": self.result["vocab_size"]}, "model")
        batches = self.result["step"] * self.settings["trainer.accumulate_grad_batches"]
        return flops_per_token(config) * config.context_length * self.settings["data.batch_size"] * batches


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed."""

    settings: dict[str, Any]  # those that vary between groups
    runs: list[Run]

    def average(self, key: str) -> float:
        values = [run.result[key] for run in self.runs if run.result[key] is not None]
        return mean(values) if values else math.nan

    @property
    def loss(self) -> float:
        return self.average("best_val_loss")

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one."""
        return stdev(run.result["best_val_loss"] for run in self.runs) if len(self.runs) > 1 else None

    @property
    def label(self) -> str:
        return ", ".join(f"{short(key)} {value}" for key, value in self.settings.items()) or "all"


def short(key: str) -> str:
    """model.n_layer is n_layer to a reader of a table."""
    return key.split(".", 1)[-1]


def read_run(folder: Path) -> Run:
    config, result, error, metrics = (folder / name for name in ("config.yaml", "result.json", "error.txt", "metrics.csv"))
    settings, curve = OmegaConf.to_container(OmegaConf.load(config)) if config.exists() else {}, []
    if metrics.exists():
        with open(metrics, newline="", encoding="utf-8") as file:
            curve = [(int(row["step"]) + 1, float(row["val/loss"])) for row in csv.DictReader(file) if row.get("val/loss")]
    if error.exists() and not result.exists():
        return Run(folder, decisive(settings), None, curve, error.read_text(encoding="utf-8").partition("\n")[0])
    found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
    if found and settings["data"].get("tokenizer", "char") != "char":  # then losses compare per character, as others are
        share = found["final_bits_per_char"] * math.log(2) / found["final_val_loss"]
        found |= {key: share * found[key] for key in ("best_val_loss", "final_val_loss") if found[key] is not None}
        curve = [(step, share * loss) for step, loss in curve]
    return Run(folder, decisive(settings), found, curve)


def read_runs(folder: Path) -> list[Run]:
    """All runs under a folder, by name. Raises UserError if there are none."""
    folders = {path.parent for name in ("config.yaml", "error.txt") for path in folder.glob(f"**/{name}")}
    runs = [read_run(path) for path in sorted(folders)]
    if not any(run.result for run in runs):
        raise UserError(f"folder = {folder}: no finished run in it; give a folder under outputs/")
    return runs


def group(runs: list[Run]) -> list[Group]:
    """Finished runs, gathered over seeds, lowest mean loss first; each with the settings that vary between groups."""
    finished = [run for run in runs if run.result and run.result["best_val_loss"] is not None]
    keys = [key for key in dict.fromkeys(key for run in finished for key in run.settings) if key != "seed"]
    varying = [key for key in keys if len({str(run.settings.get(key)) for run in finished}) > 1]
    gathered: dict[str, list[Run]] = {}
    for run in finished:
        gathered.setdefault(str([run.settings.get(key) for key in varying]), []).append(run)
    groups = [Group({key: same[0].settings.get(key) for key in varying}, same) for same in gathered.values()]
    return sorted(groups, key=lambda one: one.loss)


# The table


def rows(groups: list[Group]) -> list[dict[str, str]]:
    """The table's lines, as text."""
    seeds = any(len(one.runs) > 1 for one in groups)
    lines = []
    for one in groups:
        line = {short(key): str(value) for key, value in one.settings.items()}
        line["val loss"] = f"{one.loss:.4f}"
        if seeds:
            line |= {"sd": "" if one.spread is None else f"{one.spread:.4f}", "seeds": str(len(one.runs))}
        line |= {"parameters": f"{one.average('parameters'):.0f}", "characters/s": f"{one.average('chars_per_second'):.0f}"}
        lines.append(line | {"seconds": f"{one.average('seconds'):.0f}"})
    return lines


def markdown(lines: list[dict[str, str]]) -> str:
    """Columns padded, so that it reads as well in a terminal."""
    width = {key: max(len(key), *(len(line[key]) for line in lines)) for key in lines[0]}
    table = [dict(zip(width, width, strict=True)), {key: "-" * (size - 1) + ":" for key, size in width.items()}, *lines]
    return "\n".join("| " + " | ".join(line[key].rjust(size) for key, size in width.items()) + " |" for line in table)


def comma_separated(lines: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


# The pictures: each draws on a figure, or returns False where there is nothing to see


def draw_curves(figure: Any, groups: list[Group]) -> bool:
    """Validation loss against steps, all runs: the darker, the lower it ends."""
    axes = figure.subplots()
    for rank, one in enumerate(groups):
        for number, run in enumerate(one.runs):
            shade, label = str(0.85 * rank / len(groups)), one.label if rank < 10 and number == 0 else None
            axes.plot(*zip(*run.curve, strict=True), color=shade, linewidth=1, label=label, zorder=-rank)
    axes.set(xlabel="step", ylabel="val/loss (nats per character)")
    axes.legend(frameon=False, fontsize=6, title="best first", title_fontsize=7)
    return True


def draw_axes(figure: Any, groups: list[Group]) -> bool:
    """Loss against each setting that varies: a point for each group, a line through the means."""
    keys = list(groups[0].settings)
    if not keys:
        return False
    for axes, key in zip(figure.subplots(1, len(keys), sharey=True, squeeze=False)[0], keys, strict=True):
        losses = by_value(groups, key)
        for place, found in enumerate(losses.values()):
            axes.plot([place] * len(found), found, "o", color="0.6", markersize=4)
        axes.plot(range(len(losses)), [mean(found) for found in losses.values()], "k-")
        axes.set_xticks(range(len(losses)), losses)
        axes.set_xlabel(short(key))
    figure.axes[0].set_ylabel("best val/loss (nats per character)")
    return True


def draw_compute(figure: Any, groups: list[Group]) -> bool:
    """Loss against operations of training; the line is the Pareto front: nothing below it costs less."""
    axes, best, front = figure.subplots(), math.inf, []
    for one in sorted(groups, key=lambda one: (one.runs[0].flops, one.loss)):
        axes.plot(one.runs[0].flops, one.loss, "o", color="0.6")
        if one.loss < best:
            best = one.loss
            front.append((one.runs[0].flops, best))
            axes.annotate(one.label, front[-1], fontsize=6, xytext=(4, 4), textcoords="offset points")
    axes.plot(*zip(*front, strict=True), "k.-", drawstyle="steps-post")
    axes.set(xscale="log", xlabel="training compute (floating-point operations)", ylabel="best val/loss (nats per character)")
    return True


def draw_heat(figure: Any, groups: list[Group]) -> bool:
    """Mean loss for each pair of values of the two settings that vary most."""
    keys = sorted(groups[0].settings, key=lambda key: -len(by_value(groups, key)))[:2]
    if len(keys) < 2:
        return False
    down, across = (list(by_value(groups, key)) for key in keys)
    losses = [
        [mean([g.loss for g in groups if [str(g.settings[key]) for key in keys] == [a, b]] or [math.nan]) for b in across]
        for a in down
    ]
    axes = figure.subplots()
    image = axes.imshow(losses, cmap="Greys_r", aspect="auto")
    middle = sum(image.get_clim()) / 2
    for y, line in enumerate(losses):
        for x, loss in enumerate(line):
            axes.text(x, y, f"{loss:.3f}", ha="center", va="center", color="white" if loss < middle else "black", fontsize=8)
    axes.set_xticks(range(len(across)), across)
    axes.set_yticks(range(len(down)), down)
    axes.set(xlabel=short(keys[1]), ylabel=short(keys[0]))
    figure.colorbar(image, label="best val/loss (nats per character)")
    return True


PICTURES: dict[str, Callable[[Any, list[Group]], bool]] = {
    "curves": draw_curves,
    "axes": draw_axes,
    "compute": draw_compute,
    "heat": draw_heat,
}


def by_value(groups: list[Group], key: str) -> dict[str, list[float]]:
    """Losses for each value of a setting, numbers in their order."""
    values = {str(one.settings[key]): one.settings[key] for one in groups}
    numbers = all(isinstance(value, (int, float)) for value in values.values())
    ordered = sorted(values, key=values.get if numbers else None)
    return {value: [one.loss for one in groups if str(one.settings[key]) == value] for value in ordered}


def compare(folder: Path) -> str:
    """Write compare.md, compare.csv and the pictures into `folder`; return what a terminal should show."""
    from gpt.checkpoint import atomic, write_text

    runs = read_runs(folder)
    groups = group(runs)
    if not groups:
        raise UserError(f"folder = {folder}: no run in it has a best val/loss; keep callbacks.best")
    lines = rows(groups)
    unfinished = [f"{run.folder.relative_to(folder)}: {run.error}" for run in runs if not run.result]
    table = "\n\n".join([markdown(lines), *unfinished])
    write_text(folder / "compare.md", table + "\n")
    write_text(folder / "compare.csv", comma_separated(lines))
    written = ["compare.md", "compare.csv"]
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return f"{table}\n\nwritten: {', '.join(written)}; for the pictures: pip install matplotlib"
    for name, draw in PICTURES.items():
        figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
        if draw(figure, groups):
            with atomic(folder / f"{name}.png") as file:
                figure.savefig(file, format="png")
            written.append(f"{name}.png")
    return f"{table}\n\nwritten into {folder}: {', '.join(written)}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a sweep under outputs/sweeps/, or any folder with runs in it")
    print(compare(parser.parse_args(arguments).folder))


if __name__ == "__main__":
    with user_errors():
        main()
