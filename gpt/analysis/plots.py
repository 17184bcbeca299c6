"""Pictures of runs: the losses of one, and what settings do to the results of many."""

import io
import math
import warnings
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from pandas import DataFrame, Series, concat

from gpt.analysis.compare import Comparison, read_metric, show

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
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of signs that no font has
        figure.savefig(file, format=kind)
    return file.getvalue()


@OUR_STYLE
def draw_pictures(found: Comparison, x: str = "steps") -> dict[str, Figure]:
    """The pictures of a comparison that have something to show. `x` is as in `report.compare`."""
    points, settings = locate(found, x)
    figures, is_task = {}, found.metric == "accuracy"
    if not is_task and found.runs["curve"].map(len).any():
        figures["curves"] = draw_curves(points, found.runs, x)
    if is_task or len(points) > 1:
        names = arrange(points, settings, x)
        figure = draw_grid(points, names, found.metric, x) if names else draw_ranking(points, found.metric)
        heading = [] if is_task else [f"best {points['loss'].iloc[0]:.4f}: {points['caption'].iloc[0]}"]
        heading += ["mean and standard deviation over seeds"] if points["seeds"].max() > 1 else []
        figure.suptitle("\n".join(heading), fontsize=9)
        figures["tasks" if is_task else "axes"] = figure
    return figures


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


def locate(found: Comparison, x: str) -> tuple[DataFrame, list[str]]:
    """The table for pictures, and the settings that vary as numbers or texts; if these are many, runs' names.

    A caption has all of them, `cost` is in the unit of `x`, and `best` is the loss where it is the best.
    """
    points, settings = found.table.infer_objects(), found.settings
    if not 0 < len(settings) <= MOST_NAMED:
        points, settings = points.assign(run=points["run"].str[-60:]), ["run"]
    texts = points[settings].map(show)
    captions = [", ".join(map(" ".join, row.items())) for row in texts.to_dict("records")]
    words = texts[[name for name in settings if name not in points.select_dtypes("number")]]
    best = {"best": points["loss"].where(points.index == points.index[0])} if found.metric == "loss" else {}
    costs = found.runs.groupby("line")[x].mean()
    return points.assign(caption=captions, cost=costs, sd=points["sd"].fillna(0), **words, **best), settings


def draw_curves(points: DataFrame, runs: DataFrame, x: str) -> Figure:
    """Validation loss during training. The best have colours, captions and a band over seeds."""
    best = points["caption"][: len(MARKERS)]
    figure = Figure(figsize=(6.2 + 0.07 * best.str.len().max(), 4.5))
    axes = figure.subplots()
    for rank, (line, some) in enumerate((line, runs[runs["line"] == line]) for line in points.index):
        losses = concat(list(some["curve"]), axis=1, join="inner").sort_index()
        losses.index *= (some[x] / some["steps"]).mean()
        style: Any = {"color": f"C{rank}" if line in best else MUTED, "zorder": 3 - rank / len(points)}
        marker = "o" if len(losses) <= (20 if line in best else 1) else ""  # one validation is no line
        axes.plot(losses.mean(axis=1), marker=marker, markersize=3.5, label=best.get(line), **style)
        if line in best:
            reach = losses.min(axis=1), losses.max(axis=1)
            axes.fill_between(losses.index, *reach, alpha=0.2, linewidth=0, **style)
    axes.set(xlabel=LABELS.get(x, "step"), ylabel="val/loss (nats per character)")
    axes.set_ylim(without_diverged(concat(list(runs["curve"]))))
    if x == "steps":
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", integer=True)
    else:
        scale_x(axes, Series(axes.dataLim.intervalx))
    title = "best first" if len(points) == len(best) else f"the best {len(best)} of {len(points)}"
    figure.legend(loc="outside right upper", title=title, alignment="left")
    return figure


def arrange(points: DataFrame, settings: list[str], x: str) -> list[str]:
    """The settings for a picture's horizontal axis, its lines and, from the third, its panels.

    None for points that lines would not explain: few of a grid, or unordered ones. A line runs through the
    ordered setting with most values or, if `x` is a cost, through the setting that costs most.
    """
    count = points[settings].nunique().sort_values(ascending=False, kind="stable")
    if x == "steps":
        firsts = count.index.intersection(points.select_dtypes("number").columns, sort=False)[:1]
    else:
        firsts = [max(settings, key=lambda name: points.groupby(name)["cost"].mean().std())]
    rest = count.drop(firsts)
    is_grid = len(firsts) and count.prod() <= 2 * len(points) and (rest <= len(MARKERS)).all()
    return [*firsts, *rest.index] if is_grid else []


def draw_grid(points: DataFrame, names: list[str], metric: str, x: str) -> Figure:
    """A line for each value of one setting, a panel for each combination of others; the best is marked."""
    first, lines, *others = [*names, "", ""][: max(3, len(names))]  # "" has one value, which is ""
    points = points.assign(place=points[first if x == "steps" else "cost"], **{"": ""})
    panels, columns = list(points.groupby(others)), points[others[-1]].nunique()
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.8 * columns + 1.8, 2.6 * rows + 0.4) if len(panels) > 1 else (7.3, 4))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (values, panel) in zip(grid.flat, panels, strict=False):
        for number, kind in enumerate(sorted(points[lines].unique())):
            part = panel[panel[lines] == kind].sort_values("place")
            style: Any = {"color": f"C{number}", "marker": MARKERS[number], "elinewidth": 1}
            axes.errorbar(part["place"], part[metric], part["sd"], label=show(kind), **style)
            for value, *place in zip(part[first], part["place"], part[metric], strict=True):
                text = "" if x == "steps" else show(value)
                axes.annotate(text, place, (4, 4), textcoords="offset points", fontsize=8)
        axes.set_title(", ".join(map(" ".join, zip(others, map(show, values), strict=True))).strip())
        for name in points.columns.intersection([*REFERENCES]):
            axes.plot(panel["place"], panel[name], REFERENCES[name], markersize=9, zorder=4, label=name)
    scale_x(axes, points["place"])
    if x == "steps" and len(ticks := sorted(points[first].unique())) <= 8:
        axes.set_xticks(ticks, map(show, ticks))
    axes.set_ylim(without_diverged(points[metric]))
    figure.supxlabel(first if x == "steps" else f"{LABELS[x]} (along a line: {first})", fontsize=9)
    figure.supylabel(LABELS[metric], fontsize=9)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", title=lines, alignment="left")
    return figure


def draw_ranking(points: DataFrame, metric: str) -> Figure:
    """The first lines of the table in their order, with the standard deviation over seeds."""
    points = points[:MOST_RANKED].assign(place=range(min(MOST_RANKED, len(points))))
    figure = Figure(figsize=(5 + 0.07 * points["caption"].str.len().max(), 1.2 + 0.26 * len(points)))
    axes = figure.subplots()
    axes.errorbar(points[metric], points["place"], xerr=points["sd"], fmt="D", elinewidth=1)
    for name in points.columns.intersection([*REFERENCES]):
        axes.plot(points[name], points["place"], REFERENCES[name], markersize=9, zorder=4, label=name)
    axes.set(xlabel=LABELS[metric], xlim=without_diverged(points[metric]), ylim=(len(points) - 0.5, -0.5))
    axes.set_yticks(points["place"], points["caption"])
    axes.grid(axis="y", visible=False)
    figure.legend(loc="outside right upper")
    return figure


def without_diverged(losses: Series) -> tuple[float, float] | None:
    """Limits that leave out losses far above the others, of runs that diverged. None if there are none."""
    kept = losses[losses <= 3 * losses.min() + 1]
    room = 0.05 * (kept.max() - kept.min()) or 0.05
    return None if len(kept) == len(losses) else (kept.min() - room, kept.max() + room)


def scale_x(axes: Axes, places: Series) -> None:
    """Ticks such as 300k and 2M, and a logarithmic axis for what differs by much."""
    if 0 < 4 * places.min() <= places.max():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: show(float(value)))
