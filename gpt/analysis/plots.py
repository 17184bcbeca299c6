"""Pictures of runs: the losses of one, and what settings do to the results of many."""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from pandas import DataFrame, Series, concat

from gpt.analysis.runs import read_metric, show

if TYPE_CHECKING:
    from gpt.analysis.compare import Comparison

OUR_STYLE = matplotlib.style.context(["default", "gpt.style"])
MARKERS, MUTED = "os^DvPX", "0.75"  # for as many lines as the palette of gpt/style.mplstyle has colours
MOST_NAMED, MOST_RANKED = 6, 30  # settings in a caption, lines of a ranking
LABELS = {"loss": "best val/loss (nats per character)", "accuracy": "accuracy on the test part"}
LABELS |= {"tokens": "tokens read in training", "seconds": "seconds of training", "flops": "training FLOPs"}
REFERENCES = {"best": "k*", "majority": "k+", "naive_bayes": "kx"}  # the last two are what there is to beat


@OUR_STYLE
def save(figure: Figure, kind: str) -> bytes:
    """The content of a picture's file, png or svg."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a folder may have any name
        figure.savefig(file, format=kind)
    return file.getvalue()


@OUR_STYLE
def draw_pictures(found: "Comparison", x: str = "steps") -> dict[str, Figure]:
    """The pictures of a comparison that have something to show. `x` is as in `compare.compare`."""
    points, settings = locate(found, x)
    if found.metric == "accuracy":
        return {"tasks": draw_results(points, settings, found.metric, x)}
    figures = {"curves": draw_curves(points, found.runs, x)} if found.runs["curve"].map(len).any() else {}
    return figures | ({"axes": draw_results(points, settings, found.metric, x)} if len(points) > 1 else {})


@OUR_STYLE
def draw_run(path: Path, unit: str) -> Figure:
    """Training and validation loss of one run's metrics.csv. Raises ValueError if it has none."""
    train, validation = (read_metric(path, name) for name in ("train/loss", "val/loss"))
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    window = max(1, len(train) // 100)
    axes.plot(train, color=MUTED, linewidth=0.5)
    label = "train/loss" if window == 1 else f"train/loss, mean of {window}"
    axes.plot(train.rolling(window).mean(), color="C0", label=label)
    axes.plot(validation, "o-", color="C1", markersize=3.5, label="val/loss", zorder=3)
    shown = [*train[len(train) // 50 :], *validation]  # the first steps are far above the rest
    room = 0.06 * (max(shown) - min(shown)) or 0.05
    axes.set(xlabel="step", ylabel=f"loss (nats per {unit})", ylim=(min(shown) - room, max(shown) + room))
    axes.set_xlim(left=0)
    axes.legend()
    return figure


def locate(found: "Comparison", x: str) -> tuple[DataFrame, list[str]]:
    """The table for pictures, and the settings that vary as numbers or texts; if these are many, runs' names.

    A caption has all of them, `cost` is in the unit of `x`, and `best` is the loss where it is the best.
    """
    points, settings = found.table.infer_objects(), found.settings
    if not 0 < len(settings) <= MOST_NAMED:
        points, settings = points.assign(run=points["run"].str[-60:]), ["run"]
    for name in set(settings) - set(points.select_dtypes("number")):
        points[name] = points[name].map(show)
    rows = points[settings].to_dict("records")
    captions = [", ".join(f"{name} {show(value)}" for name, value in row.items()) for row in rows]
    points = points.assign(caption=captions, cost=found.runs.groupby("line")[x].mean())
    best = {"best": points["loss"].where(points.index == points.index[0])} if found.metric == "loss" else {}
    return points.assign(**best), settings


def draw_curves(points: DataFrame, runs: DataFrame, x: str) -> Figure:
    """Validation loss during training. The best have colours, captions and a band over seeds."""
    best = points[: len(MARKERS)]
    figure = Figure(figsize=(6.2 + 0.07 * best["caption"].str.len().max(), 4.5), layout="constrained")
    axes = figure.subplots()
    for rank, line in enumerate(points.index):
        some = runs[runs["line"] == line]
        losses = concat(list(some["curve"]), axis=1, join="inner").sort_index()
        places = losses.index * (some[x] / some["steps"]).mean()
        style: Any = {"color": f"C{rank}" if line in best.index else MUTED, "zorder": 3 - rank / len(points)}
        marker = "o" if len(losses) <= (20 if line in best.index else 1) else ""  # one validation is no line
        label = best["caption"].get(line)
        axes.plot(places, losses.mean(axis=1), marker=marker, markersize=3.5, label=label, **style)
        if line in best.index:
            axes.fill_between(places, losses.min(axis=1), losses.max(axis=1), alpha=0.2, linewidth=0, **style)
    axes.set(xlabel=LABELS.get(x, "step"), ylabel="val/loss (nats per character)")
    if x == "steps":
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", integer=True)
    else:
        scale_x(axes, concat(Series(line.get_xdata()) for line in axes.lines))
    axes.set_ylim(without_diverged([loss for curve in runs["curve"] for loss in curve]))
    title = "best first" if len(points) == len(best) else f"the best {len(best)} of {len(points)}"
    figure.legend(loc="outside right upper", title=title, alignment="left")
    return figure


def draw_results(points: DataFrame, settings: list[str], metric: str, x: str) -> Figure:
    """The results against what varies: lines and small multiples for a grid, else a list, best first."""
    names = arrange(points, settings, x)
    figure = draw_grid(points, names, metric, x) if names else draw_ranking(points, metric)
    heading = [f"best {points['loss'].iloc[0]:.4f}: {points['caption'].iloc[0]}"] if metric == "loss" else []
    heading += ["mean and standard deviation over seeds"] if points["seeds"].max() > 1 else []
    figure.suptitle("\n".join(heading), fontsize=9)
    return figure


def arrange(points: DataFrame, settings: list[str], x: str) -> list[str]:
    """The settings for a picture's horizontal axis, its lines and, from the third, its panels.

    None for points that lines would not explain: few of a grid, or unordered ones. A line runs through the
    ordered setting with most values or, if `x` is a cost, through the setting that costs most.
    """
    count, ordered = points[settings].nunique(), set(points.select_dtypes("number"))

    def weight(name: str) -> Any:
        cost = points.groupby(name)["cost"].mean()
        return (name in ordered, count[name]) if x == "steps" else cost.max() / cost.min()

    first = max(settings, key=weight)
    rest = [name for name in count.sort_values(ascending=False, kind="stable").index if name != first]
    is_grid = count.prod() <= 2 * len(points) and (first in ordered or x != "steps")
    return [first, *rest] if is_grid and all(count[name] <= len(MARKERS) for name in rest) else []


def draw_grid(points: DataFrame, names: list[str], metric: str, x: str) -> Figure:
    """A line for each value of one setting, a panel for each combination of others; the best is marked."""
    first, lines, *others = [*names, ""][: max(2, len(names))]
    points = points.assign(place=points[first if x == "steps" else "cost"], **{"": ""})
    panels = list(points.groupby(others)) if others else [((), points)]
    columns = points[others[-1]].nunique() if others else 1
    rows = math.ceil(len(panels) / columns)
    size = (2.8 * columns + 1.8, 2.6 * rows + 0.4) if others else (7.3, 4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (values, panel) in zip(grid.flat, panels, strict=False):
        for number, kind in enumerate(sorted(points[lines].unique())):
            part = panel[panel[lines] == kind].sort_values("place")
            style: Any = {"color": f"C{number}", "marker": MARKERS[number], "elinewidth": 1}
            axes.errorbar(part["place"], part[metric], part["sd"].fillna(0), label=show(kind), **style)
            for point in part.to_dict("records") if x != "steps" else ():
                place = point["place"], point[metric]
                axes.annotate(show(point[first]), place, (4, 4), textcoords="offset points", fontsize=8)
        axes.set_title(", ".join(f"{name} {show(value)}" for name, value in zip(others, values, strict=True)))
        for name in REFERENCES.keys() & set(panel):
            axes.plot(panel["place"], panel[name], REFERENCES[name], markersize=9, zorder=4, label=name)
    scale_x(grid[0, 0], points["place"])
    if x == "steps" and len(ticks := sorted(points[first].unique())) <= 8:
        grid[0, 0].set_xticks(ticks, map(show, ticks))
    grid[0, 0].set_ylim(without_diverged(points[metric]))
    figure.supxlabel(first if x == "steps" else f"{LABELS[x]} (along a line: {first})", fontsize=9)
    figure.supylabel(LABELS[metric], fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", title=lines, alignment="left")
    return figure


def draw_ranking(points: DataFrame, metric: str) -> Figure:
    """The first lines of the table in their order, with the standard deviation over seeds."""
    points = points[:MOST_RANKED].assign(place=range(min(MOST_RANKED, len(points))))
    size = (5 + 0.07 * points["caption"].str.len().max(), 1.2 + 0.26 * len(points))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.errorbar(points[metric], points["place"], xerr=points["sd"].fillna(0), fmt="D", elinewidth=1)
    for name in REFERENCES.keys() & set(points):
        axes.plot(points[name], points["place"], REFERENCES[name], markersize=9, zorder=4, label=name)
    axes.set(xlabel=LABELS[metric], xlim=without_diverged(points[metric]), ylim=(len(points) - 0.5, -0.5))
    axes.set_yticks(points["place"], points["caption"])
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside right upper")
    return figure


def without_diverged(losses: Sequence[float]) -> tuple[float, float] | None:
    """Limits that leave out losses far above the others, of runs that diverged. None if there are none."""
    kept = [loss for loss in losses if loss <= 3 * min(losses) + 1]
    room = 0.05 * (max(kept) - min(kept)) or 0.05
    return None if len(kept) == len(losses) else (min(kept) - room, max(kept) + room)


def scale_x(axes: Axes, places: Series) -> None:
    """Ticks such as 300k and 2M, and a logarithmic axis for what differs by much."""
    if 0 < 4 * places.min() <= places.max():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: show(float(value)))
