"""Pictures of runs: the losses of one, and what settings do to the results of many."""

import io
import warnings
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from pandas import DataFrame, Series, concat

from gpt.analysis.compare import Comparison, captions, read_metric, show

OUR_STYLE = matplotlib.style.context(["default", "gpt.style"])
COLOURS, MUTED = 7, "0.75"  # those of the palette in gpt/style.mplstyle, and that of the lines after them
MOST_PANELS, MOST_RANKED = 5, 30  # settings with a panel each, values in a panel if they are texts
LABELS = {"loss": "best val/loss (nats per character)", "accuracy": "accuracy on the test part"}
LABELS |= {"tokens": "tokens read in training", "seconds": "seconds of training", "flops": "training FLOPs"}
REFERENCES = {"majority": ":", "naive_bayes": "--"}  # what there is to beat


@OUR_STYLE
def save(figure: Figure, kind: str) -> bytes:
    """The content of a picture's file, png or svg."""
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of signs that no font has
        figure.savefig(file, format=kind)
    return file.getvalue()


@OUR_STYLE
def draw_run(path: Path, unit: str) -> Figure:
    """Training and validation loss of one run's metrics.csv. Raises ValueError if it has none."""
    train, validation = (read_metric(path, name) for name in ("train/loss", "val/loss"))
    window = max(1, len(train) // 100)
    label = "train/loss" if window == 1 else f"train/loss, mean of {window}"
    figure = Figure(figsize=(7.5, 3.8))
    axes = figure.subplots()
    axes.plot(train, color=MUTED, linewidth=0.5)
    axes.plot(train.rolling(window).mean(), color="C0", label=label)
    axes.plot(validation, "o-", color="C1", markersize=3.5, label="val/loss", zorder=3)
    shown = concat([train[len(train) // 50 :], validation])  # the first steps are far above the rest
    axes.set(xlabel="step", ylabel=f"loss (nats per {unit})")
    axes.axis(xmin=0, ymax=1.03 * shown.max())
    axes.legend()
    return figure


@OUR_STYLE
def draw_pictures(found: Comparison, x: str = "steps") -> dict[str, Figure]:
    """The pictures of a comparison that have something to show. `x` is as in `report.compare`."""
    costs = found.runs.groupby("line")[x].mean()
    points = found.table.infer_objects().assign(cost=costs, sd=found.table["sd"].fillna(0))
    settings = found.settings if 0 < len(found.settings) <= MOST_PANELS else ["run"]
    points["caption"] = captions(points, settings)
    words = points[settings].select_dtypes(exclude="number")
    points[words.columns] = words.map(show)
    figures, name = {}, "axes" if found.metric == "loss" else "tasks"
    if found.metric == "loss" and found.runs["curve"].map(len).any():
        figures["curves"] = draw_curves(points, found.runs, x)
    if len(points) > 1:
        figures[name] = draw_settings(points, settings, found.metric, x)
    return figures


def draw_curves(points: DataFrame, runs: DataFrame, x: str) -> Figure:
    """Validation loss during training. The best lines have colours, captions and a band over seeds."""
    best = points["caption"][:COLOURS]
    figure = Figure(figsize=(6.2 + 0.07 * best.str.len().max(), 4.5))
    axes = figure.subplots()
    for rank, line in enumerate(points.index):
        some = runs[runs["line"] == line]
        losses = concat(list(some["curve"]), axis=1, join="inner").sort_index()
        losses.index *= (some[x] / some["steps"]).mean()
        style: Any = {"color": f"C{rank}" if line in best else MUTED, "zorder": 3 - rank / len(points)}
        axes.plot(losses.mean(axis=1), "o-", markersize=3, label=best.get(line), **style)
        if line in best:
            reach = losses.min(axis=1), losses.max(axis=1)
            axes.fill_between(losses.index, *reach, alpha=0.2, linewidth=0, **style)
    axes.set(xlabel=LABELS.get(x, "step"), ylabel="val/loss (nats per character)")
    axes.set_ylim(without_diverged(concat(list(runs["curve"]))))
    if x == "steps":
        axes.set_xlim(left=0)
    else:
        scale_x(axes, Series(axes.dataLim.intervalx))
    title = "best first" if len(points) == len(best) else f"the best {len(best)} of {len(points)}"
    figure.legend(loc="outside right upper", title=title, alignment="left")
    return figure


def draw_settings(points: DataFrame, settings: list[str], metric: str, x: str) -> Figure:
    """The results by each setting, a panel for each, or by a cost `x`. The best is marked.

    A line joins runs that differ in the panel's setting alone. Colours say what the other settings are or, if
    the palette has too few, what the first of them is.
    """
    names, numbers = settings if x == "steps" else ["cost"], points.select_dtypes("number")
    figure = Figure(figsize=(1.4 + 3.6 * len(names), 4.6))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        codes, words = points[name].factorize()  # a text stands where it is in the table
        points["place"] = points[name] if name in numbers else codes
        others = [other for other in settings if other != name]
        choices = (captions(points, some) for some in (others, others[:1], []))
        points["label"] = next(labels for labels in choices if labels.nunique() <= COLOURS)
        colours = {label: f"C{number}" for number, label in enumerate(points["label"].unique())}
        shown = points if name in numbers else points[codes < MOST_RANKED]
        for _, line in shown.groupby(captions(points, others), sort=False):
            line, label = line.sort_values("place"), line["label"].iloc[0]
            style: Any = {"color": colours[label], "label": label, "fmt": "o-" if name in numbers else "o"}
            axes.errorbar(line["place"], line[metric], line["sd"], elinewidth=1, **style)
        axes.plot(points["place"][:1], points[metric][:1], "k*", markersize=9, zorder=4, label="best")
        for reference in points.dropna(axis=1).columns.intersection([*REFERENCES]):
            axes.axhline(points[reference].mean(), ls=REFERENCES[reference], color="k", label=reference)
        labels = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))  # each of them once
        axes.legend(labels.values(), labels, loc="lower left", bbox_to_anchor=(0, 1))
        axes.set_xlabel(LABELS.get(x, name))
        if name in numbers:
            scale_x(axes, points[name])
        else:
            axes.set_xticks(range(len(words[:MOST_RANKED])), words[:MOST_RANKED], rotation=30, ha="right")
            axes.margins(x=0.1)
    panels[0].set(ylabel=LABELS[metric], ylim=without_diverged(points[metric]))
    heading = f"best {points[metric].iloc[0]:.4f}: {points['caption'].iloc[0]}"
    heading += "\nmean and standard deviation over seeds" * int(points["seeds"].max() > 1)
    figure.suptitle(heading, fontsize=9)
    return figure


def without_diverged(losses: Series) -> tuple[float, float] | None:
    """Limits that leave out losses far above the others, of runs that diverged. None if there are none."""
    kept = losses[losses <= 3 * losses.min() + 1]
    room = 0.05 * (kept.max() - kept.min()) or 0.05
    return None if len(kept) == len(losses) else (kept.min() - room, kept.max() + room)


def scale_x(axes: Axes, places: Series) -> None:
    """Ticks such as 300k and 2M, at the values if these are few, and a logarithmic axis for a wide range."""
    if 0 < 4 * places.min() <= places.max():
        axes.set_xscale("log")
        subs = (1, 2, 5) if places.max() < 100 * places.min() else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs))
        axes.xaxis.set_minor_locator(NullLocator())
    if places.nunique() <= 8:
        axes.set_xticks(places.unique())
    axes.xaxis.set_major_formatter(lambda value, _: show(float(value)))
