"""Pictures of runs: the losses of one, what the settings of many do to their results, and what a model attends to."""

import io
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.style
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from gpt.analysis.runs import read_metric, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame, Series
    from torch import Tensor

    from gpt.analysis.compare import Comparison

OUR_STYLE = matplotlib.style.context(["default", "gpt.style"])
MARKERS, MUTED = "os^DvPX", "0.75"  # for as many lines as the palette of gpt/style.mplstyle has colours
MOST_NAMED, MOST_RANKED = 6, 30  # settings in a label, lines of a ranking
LABELS = {"loss": "best val/loss (nats per character)", "accuracy": "accuracy on the test part"}
LABELS |= {"tokens": "tokens read in training", "seconds": "seconds of training", "flops": "FLOPs of training"}


@OUR_STYLE
def save(figure: Figure, kind: str) -> bytes:
    """The file of a picture: png or svg."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a folder may have any name
        figure.savefig(file, format=kind)
    return file.getvalue()


@OUR_STYLE
def draw_pictures(found: "Comparison", x: str = "steps") -> dict[str, Figure]:
    """The pictures of a comparison that have something to show. `x` is as in `gpt.analysis.compare.compare`."""
    if found.metric == "accuracy":
        return {"tasks": draw_axes(found, x)}
    figures = {"curves": draw_curves(found, x)} if found.runs["curve"].map(len).any() else {}
    return figures | ({"axes": draw_axes(found, x)} if len(found.table) > 1 else {})


@OUR_STYLE
def draw_run(path: Path, unit: str) -> Figure:
    """Training and validation loss of one run's metrics.csv."""
    train, validation = (read_metric(path, name) for name in ("train/loss", "val/loss"))
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    window = max(1, len(train) // 100)
    axes.plot(train, color=MUTED, linewidth=0.5)
    axes.plot(train.rolling(window).mean(), label="train/loss" if window == 1 else f"train/loss, mean of {window}")
    axes.plot(validation, "o-", markersize=3.5, label="val/loss", zorder=3)
    shown = [*train[len(train) // 50 :], *validation]  # the first steps are far above the rest
    room = 0.06 * (max(shown) - min(shown)) or 0.05
    axes.set(xlabel="step", ylabel=f"loss (nats per {unit})", ylim=(min(shown) - room, max(shown) + room))
    axes.set_xlim(left=0)
    axes.locator_params(axis="x", integer=True)
    axes.legend()
    return figure


def draw_curves(found: "Comparison", x: str) -> Figure:
    """Validation loss during training. The best lines of the table have colours, the others are grey behind them."""
    from pandas import concat

    points, _ = locate(found, x)
    figure = Figure(figsize=(6.2 + 0.07 * points["caption"].str.len()[:7].max(), 4.5), layout="constrained")
    axes = figure.subplots()
    for rank, (line, label) in enumerate(points["caption"].items()):
        runs = found.runs[found.runs["line"] == line]
        losses = concat([*runs["curve"]], axis=1, join="inner").sort_index()
        places = losses.index * (runs[x] / runs["steps"]).mean()
        style = {"color": MUTED, "zorder": 1, "marker": "o" if len(losses) == 1 else ""}  # one validation is no line
        if rank < len(MARKERS):
            style = {"color": f"C{rank}", "zorder": 3 - rank / 10, "marker": "o" if len(losses) <= 20 else ""}
            band = {"alpha": 0.2, "linewidth": 0, "color": style["color"], "zorder": style["zorder"]}
            axes.fill_between(places, losses.min(axis=1), losses.max(axis=1), **band)
        axes.plot(places, losses.mean(axis=1), markersize=3.5, label=label if rank < len(MARKERS) else None, **style)
    axes.set(xlabel=LABELS.get(x, "step"), ylabel="val/loss (nats per character)")
    if x == "steps":
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", integer=True)
    else:
        scale_x(axes, [place for line in axes.lines for place in line.get_xdata()])
    axes.set_ylim(without_diverged([loss for curve in found.runs["curve"] for loss in curve]))
    title = "best first" if len(points) <= len(MARKERS) else f"the best {len(MARKERS)} of {len(points)}"
    figure.legend(loc="outside right upper", title=title, alignment="left")
    return figure


def draw_axes(found: "Comparison", x: str) -> Figure:
    """The results against what varies: lines and small multiples for a grid, else a list for each task, best first."""
    points, settings = locate(found, x)
    names = arrange(points, settings, x)
    figure = draw_grid(points, names, found.metric, x) if names else draw_ranking(points, settings, found)
    best = points.iloc[0]
    heading = [f"best {best['loss']:.4f}: {best['caption']}"] if found.metric == "loss" else []
    heading += ["mean and standard deviation over seeds"] if points["seeds"].max() > 1 else []
    figure.suptitle("\n".join(heading), fontsize=9)
    return figure


def locate(found: "Comparison", x: str) -> tuple["DataFrame", list[str]]:
    """The table for pictures: settings are numbers or texts, a caption names them, and cost is in the unit of `x`.

    Where many settings vary, lines are told apart by the names of their runs.
    """
    table, settings = found.table.infer_objects(), found.settings
    points = table.assign(**{name: table[name].map(show) for name in settings if not is_ordered(table, name)})
    if not 0 < len(settings) <= MOST_NAMED or points.duplicated(settings).any():
        settings, points["run"] = ["run"], points["run"].str[-60:]
    rows = points[settings].to_dict("records")
    captions = [", ".join(f"{name} {show(value)}" for name, value in row.items()) for row in rows]
    captions = [caption.removeprefix("run ") for caption in captions]
    return points.assign(caption=captions, cost=found.runs.groupby("line")[x].mean()), settings


def is_ordered(points: "DataFrame", name: str) -> bool:
    return points[name].dtype.kind in "iuf"


def arrange(points: "DataFrame", settings: list[str], x: str) -> list[str]:
    """The settings for a picture's horizontal axis, its lines and, from the third, its panels.

    None for points that lines would not explain: few of a grid, or unordered ones. A line runs through the ordered
    setting with most values or, if `x` is a cost, through the setting that costs most.
    """
    count, cost = points[settings].nunique(), {name: points.groupby(name)["cost"].mean() for name in settings}
    ratio = {name: means.max() / means.min() for name, means in cost.items()}
    value = {name: (is_ordered(points, name), count[name]) if x == "steps" else ratio[name] for name in settings}
    first = max(settings, key=lambda name: (name != "task", value[name]))
    rest = sorted((name for name in settings if name != first), key=lambda name: (name == "task", -count[name]))
    is_grid = count.prod() <= 2 * len(points) and (rest or is_ordered(points, first))
    return [first, *rest] if is_grid and count[rest[:1]].max() in range(len(MARKERS) + 1) else []


def draw_grid(points: "DataFrame", names: list[str], metric: str, x: str) -> Figure:
    """A line for each value of one setting, a panel for each combination of the others; the best is marked."""
    first, lines, *others = [*names, ""][: max(2, len(names))]
    ticks = [] if is_ordered(points, first) else list(points[first].unique())
    place = points["cost"] if x != "steps" else points[first].map(ticks.index) if ticks else points[first]
    points = points.assign(place=place, **{"": ""})
    panels = list(points.groupby(others)) if others else [((), points)]
    columns = points[others[-1]].nunique() if others else 1
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(2.8 * columns + 1.8, 2.6 * rows + 0.4) if others else (7.3, 4), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (values, panel) in zip(grid.flat, panels, strict=False):
        for number, kind in enumerate(sorted(points[lines].unique())):
            part = panel[panel[lines] == kind].sort_values("place")
            style = {"color": f"C{number}", "marker": MARKERS[number], "label": show(kind), "elinewidth": 1}
            axes.errorbar(part["place"], part[metric], part["sd"].fillna(0), **style)
            for _, point in part.iterrows() if x != "steps" and number == 0 else ():
                axes.annotate(show(point[first]), (point["place"], point[metric]), (4, 4), textcoords="offset points")
        if metric == "loss" and panel.index[0] == points.index[0]:
            axes.plot(*panel.iloc[0][["place", "loss"]], "k*", markersize=11, zorder=5, label="best")
        axes.set_title(", ".join(f"{name} {show(value)}" for name, value in zip(others, values, strict=True)))
        draw_baselines(axes.axhline, panel)
    if x != "steps" or not ticks:
        scale_x(grid[0, 0], place)
    if x == "steps" and place.nunique() <= 8:
        grid[0, 0].set_xticks(sorted(place.unique()), ticks or map(show, sorted(points[first].unique())))
    if metric == "loss":
        grid[0, 0].set_ylim(without_diverged(points["loss"]))
    figure.supxlabel(LABELS[x] + f" (along a line: {first})" if x != "steps" else first, fontsize=9)
    figure.supylabel(LABELS[metric], fontsize=9)
    handles = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside right upper", title=lines, alignment="left")
    return figure


def draw_ranking(points: "DataFrame", settings: list[str], found: "Comparison") -> Figure:
    """The best lines of the table, of each task in a panel of its own, with the results of all seeds."""
    panels = [panel[:MOST_RANKED] for _, panel in points.groupby("task")] if "task" in settings else [points[:MOST_RANKED]]
    sizes = [len(panel) for panel in panels]
    size = (5 + 0.07 * points["caption"].str.len().max(), 1 + 0.26 * sum(sizes) + 0.5 * len(sizes))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=sizes)
    for axes, panel in zip(grid.flat, panels, strict=True):
        for place, line in enumerate(panel.index):
            scores = found.runs[found.metric][found.runs["line"] == line]
            style = {"color": "C1" if place == 0 else "C0", "linewidth": 1}
            axes.plot(scores, [place] * len(scores), "o-", markersize=3, alpha=0.6, **style)
            axes.plot(scores.mean(), place, "*" if place == 0 else "D", markersize=11 if place == 0 else 5, **style)
        axes.set(yticks=range(len(panel)), yticklabels=panel["caption"], ylim=(len(panel) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        draw_baselines(axes.axvline, panel)
    if found.metric == "loss":
        axes.set_xlim(without_diverged(points["loss"]))
    axes.set_xlabel(LABELS[found.metric])
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
    return figure


def draw_baselines(draw: Callable[..., object], panel: "DataFrame") -> None:
    """What there is to beat in a task: an answer that is always the same, and a count of characters."""
    for name, dashes in (("majority", ":"), ("naive_bayes", "--")):
        for value in panel[name].dropna().unique() if name in panel else ():
            draw(value, color="black", linewidth=0.8, linestyle=dashes, label=name.replace("_", " "))


def without_diverged(losses: Sequence[float]) -> tuple[float, float] | None:
    """Limits that leave out losses far above the others, of runs that diverged. None if there are none."""
    kept = [loss for loss in losses if loss <= 3 * min(losses) + 1]
    room = 0.05 * (max(kept) - min(kept)) or 0.05
    return None if len(kept) == len(losses) else (min(kept) - room, max(kept) + room)


def scale_x(axes: "Axes", places: Sequence[float]) -> None:
    """Ticks such as 300k and 2M, and a logarithmic axis for what differs by much."""
    axes.xaxis.set_major_formatter(lambda value, _: show(float(value)))
    if 0 < 4 * min(places) <= max(places):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())


@OUR_STYLE
def draw_attention(weights: "Tensor", tokens: Sequence[str], title: str) -> Figure:
    """Draw one layer's weights (H, T, T), a panel for each head. A row is the token that attends, darker means more."""
    heads, size = weights.shape[:2]
    columns = math.ceil(math.sqrt(heads))
    rows = math.ceil(heads / columns)
    names = [token.replace("\n", "\u23ce").replace(" ", "\u2423") for token in tokens]
    panel = 0.14 * size  # inches: a line of 8 points for each token
    figure = Figure(figsize=(panel * columns + 1.6, panel * rows + 0.4 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for head, axes in enumerate(panels.flat):
        if head >= heads:
            axes.set_visible(False)
            continue
        # The square root brings out small weights, such as those of a head that looks at many tokens
        image = axes.imshow(weights[head].numpy(), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
        axes.set_title(f"head {head + 1}")
        axes.set_xticks(range(size), names, family="DejaVu Sans Mono", rotation=90 if max(map(len, names)) > 1 else 0)
        axes.set_yticks(range(size), names, family="DejaVu Sans Mono")
        axes.tick_params(length=0, labelbottom=head + columns >= heads)
        axes.grid(visible=False)
    figure.colorbar(image, ax=panels, ticks=[0, 0.01, 0.1, 0.5, 1], format="%g", label="attention weight", aspect=40)
    figure.suptitle(title)
    figure.supxlabel("attended to", fontsize=9)
    figure.supylabel("attending", fontsize=9)
    return figure
