"""What a comparison draws: validation loss during training, and the best loss against the settings that vary."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from gpt.cli.layout import Axis, Layout, Point, arrange, locate, show
from gpt.cli.records import Group, RunRecord, read_metric
from gpt.files import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The colours of gpt/style.mplstyle
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MUTED = "0.75"
LOSS = "best val/loss (nats per character)"
COST = {"tokens": "tokens read in training", "seconds": "seconds of training", "flops": "FLOPs of training"}
MOST_RANKED = 30


def draw_pictures(groups: list[Group], folder: Path, x: str) -> list[str]:
    """Write curves.png and axes.png into `folder`, and return the names of those that have something to show.

    `x` is the horizontal axis: "steps" (in axes.png: a setting that varies), "tokens", "seconds" or "flops".
    Raises ImportError without matplotlib.
    """
    points, written = locate(groups), []
    pictures: dict[str, Callable[[list[Point], str], Figure | None]] = {
        "curves.png": draw_curves,
        "axes.png": draw_axes,
    }
    with our_style():
        for name, draw in pictures.items():
            if (figure := draw(points, x)) is not None:
                with atomic(folder / name) as file:
                    figure.savefig(file, format="png")
                written.append(name)
    return written


@contextmanager
def our_style() -> Iterator[None]:
    """Draw in the style of this project, whatever is in the texts. Raises ImportError without matplotlib."""
    import matplotlib.style

    with matplotlib.style.context(["default", "gpt.style"]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a folder may have any name
        yield


def draw_run(path: Path, unit: str, baselines: Mapping[str, float] | None = None) -> "Figure | None":
    """Training and validation loss of one run's metrics.csv, and those of the baselines that are near. None without losses."""
    from matplotlib.figure import Figure

    metrics = [read_metric(path, name) for name in ("train/loss", "val/loss")]
    train, validation = ([(step, loss) for step, loss in points if math.isfinite(loss)] for points in metrics)
    figure = Figure(figsize=(7.5, 3.8), layout="constrained")
    axes = figure.subplots()
    window = max(1, len(train) // 100)
    if train:
        steps, losses = zip(*train, strict=True)
        smooth = [mean(losses[end - window : end]) for end in range(window, len(losses) + 1)]
        axes.plot(steps, losses, color=MUTED, linewidth=0.5)
        axes.plot(
            steps[window - 1 :],
            smooth,
            color=PALETTE[0],
            label=f"train/loss, mean of {window}" if window > 1 else "train/loss",
        )
    if validation:
        axes.plot(
            *zip(*validation, strict=True),
            color=PALETTE[1],
            marker="o",
            markersize=3.5,
            label="val/loss",
            zorder=3,
        )
    if not axes.lines:
        return None
    values = sorted(
        loss for _, loss in [*train[len(train) // 50 :], *validation]
    )  # the first steps are far above the rest
    low, high = values[0], values[-1]
    room = 0.06 * (high - low) or 0.05
    for (name, loss), dashes in zip((baselines or {}).items(), (":", "--", "-."), strict=False):
        if low - 4 * room <= loss <= high:
            axes.axhline(loss, color="black", linewidth=0.8, linestyle=dashes, label=f"{name} {loss:.4f}")
            low = min(low, loss)
    axes.set(xlabel="step", ylabel=f"loss (nats per {unit})", ylim=(low - room, high + room), xlim=(0, None))
    axes.locator_params(axis="x", integer=True)
    axes.legend()
    return figure


def span(losses: Sequence[float]) -> tuple[float, float] | None:
    """What to show of losses if some are far above the others, because a run diverged. None to show all."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    kept = [loss for loss in finite if loss <= 3 * min(finite) + 1]
    room = 0.05 * (max(kept) - min(kept)) or 0.05
    return None if len(kept) == len(losses) else (min(kept) - room, max(kept) + room)


def draw_curves(points: list[Point], x: str) -> "Figure | None":
    """Validation loss during training. The best groups have colours, and the others are grey behind them."""
    from matplotlib.figure import Figure

    longest = max(len(point.label) for point in points[: len(PALETTE)])
    figure = Figure(figsize=(6.2 + 0.07 * longest, 4.5), layout="constrained")
    axes = figure.subplots()
    for rank, point in enumerate(points):
        is_named = rank < len(PALETTE)
        color, label = (PALETTE[rank], point.label) if is_named else (MUTED, None)
        draw_curve(
            axes, point.group, x, color=color, label=label, zorder=3 - rank / len(points) if is_named else 1
        )
    if not axes.lines:
        return None
    axes.set(xlabel=COST.get(x, "step"), ylabel="val/loss (nats per character)")
    if x in COST:
        scale_cost(axes)
    if axes.get_xscale() == "linear":
        axes.set_xlim(left=0)
    if x not in COST:
        axes.locator_params(axis="x", integer=True)
    if shown := span([loss for point in points for run in point.group.runs for _, loss in run.curve]):
        axes.set_ylim(shown)
        axes.set_title("what lies above the picture has diverged")
    if points[0].at:
        title = "best first" if len(points) <= len(PALETTE) else f"the best {len(PALETTE)} of {len(points)}"
        figure.legend(loc="outside right upper", title=title, alignment="left")
    return figure


def draw_curve(axes: "Axes", group: Group, x: str, **style: Any) -> None:
    """A group's mean over seeds, with a band from the lowest to the highest."""
    curves = [dict(run.curve) for run in group.runs]
    steps = sorted(set(curves[0]).intersection(*curves[1:]))
    if not steps:
        return
    losses = [[curve[step] for curve in curves] for step in steps]
    places = [mean(cost(run, x, step) for run in group.runs) for step in steps]
    is_named = style["label"] is not None
    marker = "o" if len(steps) <= (20 if is_named else 1) else None  # one validation is no line
    axes.plot(places, [mean(found) for found in losses], marker=marker, markersize=3.5, **style)
    if len(curves) > 1 and is_named:
        band = {"color": style["color"], "zorder": style["zorder"], "alpha": 0.2, "linewidth": 0}
        axes.fill_between(places, [min(found) for found in losses], [max(found) for found in losses], **band)


def cost(run: RunRecord, x: str, step: int) -> float:
    """How far a run has come after a step, in the unit of the horizontal axis."""
    return getattr(run, x)(step) if x in COST else step


def draw_axes(points: list[Point], x: str) -> "Figure | None":
    """The best loss against what varies: lines and small multiples for a grid, else a list, best first."""
    if len(points) < 2:
        return None
    layout = arrange(points, (lambda group: group_cost(group, x)) if x in COST else None)
    return draw_ranking(points) if layout is None else draw_grid(points, layout, x)


def draw_grid(points: list[Point], layout: Layout, x: str) -> "Figure":
    """A line for each value of one setting, a panel for each combination of two others; the best is marked."""
    from matplotlib.figure import Figure

    best = points[0]
    shown = [
        point for point in points if all(point.at[axis.name] == best.at[axis.name] for axis in layout.others)
    ]
    columns, rows = (axis.values if axis else [None] for axis in (layout.columns, layout.rows))
    width, height = (
        (5.5, 4.0) if len(columns) == len(rows) == 1 else (2.8 * len(columns), 2.6 * len(rows) + 0.4)
    )
    figure = Figure(figsize=(width + (1.8 if layout.lines else 0.5), height), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for row, row_panels in zip(rows, panels, strict=True):
        for column, axes in zip(columns, row_panels, strict=True):
            place = {
                axis.name: value for axis, value in ((layout.columns, column), (layout.rows, row)) if axis
            }
            inside = [
                point for point in shown if all(point.at[name] == value for name, value in place.items())
            ]
            draw_panel(axes, inside, layout, x)
            if best in inside:
                axes.plot(
                    place_of(best, layout.x, x), best.group.loss, "k*", markersize=11, zorder=5, label="best"
                )
            axes.set_title(", ".join(f"{name} {show(value)}" for name, value in place.items()), fontsize=9)
    label_x(panels[0, 0], layout.x, x)
    figure.supxlabel(COST.get(x, layout.x.name), fontsize=9)
    figure.supylabel(LOSS, fontsize=9)
    along = f"along a line: {layout.x.name}" if x in COST else ""
    fixed = ", ".join(f"{axis.name} {show(best.at[axis.name])}" for axis in layout.others)
    heading = [along, fixed and f"only {fixed} is shown"]
    if kept := span([loss for point in shown for loss in point.group.losses]):
        panels[0, 0].set_ylim(kept)
        heading.append("what lies above the picture has diverged")
    figure.suptitle(describe(points, *heading), fontsize=9)
    handles = {
        label: handle
        for axes in panels.flat
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if layout.lines:
        order = [show(value) for value in layout.lines.values] + ["best"]
        named = {label: handles[label] for label in order if label in handles}
        figure.legend(
            named.values(), named, loc="outside right upper", title=layout.lines.name, alignment="left"
        )
    return figure


def describe(points: list[Point], *notes: str) -> str:
    """The heading of a picture: the best group, and below it how to read what is drawn."""
    seeds = max(len(point.group.runs) for point in points)
    spread = f"mean, lowest and highest of {seeds} seeds" if seeds > 1 else ""
    below = "; ".join(filter(None, (*notes, spread)))
    return f"best {points[0].group.loss:.4f}: {points[0].label}" + (f"\n{below}" if below else "")


def draw_panel(axes: "Axes", points: list[Point], layout: Layout, x: str) -> None:
    """One panel's lines, with a band from the lowest to the highest seed."""
    for number, value in enumerate(layout.lines.values if layout.lines else [None]):
        line = [point for point in points if layout.lines is None or point.at[layout.lines.name] == value]
        line.sort(key=lambda point: layout.x.position(point.at[layout.x.name]))
        if not line:
            continue
        places, losses = (
            [place_of(point, layout.x, x) for point in line],
            [point.group.losses for point in line],
        )
        color, marker = PALETTE[number], MARKERS[number]
        axes.plot(
            places, [mean(found) for found in losses], color=color, marker=marker, label=show(value), zorder=3
        )
        lowest, highest = [min(found) for found in losses], [max(found) for found in losses]
        axes.vlines(places, lowest, highest, color=color, linewidth=1)
        if x not in COST:
            axes.fill_between(places, lowest, highest, color=color, alpha=0.2, linewidth=0)
        for point, place in zip(line, places, strict=True) if x in COST and number == 0 else ():
            text = show(point.at[layout.x.name])
            axes.annotate(text, (place, point.group.loss), (4, 4), textcoords="offset points", fontsize=8)


def draw_ranking(points: list[Point]) -> "Figure":
    """A line for each group, best first, with a dot for each seed: for what has no order, such as a choice of architecture."""
    from matplotlib.figure import Figure

    ranked = points[:MOST_RANKED]
    longest = max(len(point.label) for point in ranked)
    figure = Figure(figsize=(5.0 + 0.07 * longest, 1.2 + 0.26 * len(ranked)), layout="constrained")
    axes = figure.subplots()
    for place, point in enumerate(ranked):
        color = PALETTE[1] if place == 0 else PALETTE[0]
        axes.plot(
            [min(point.group.losses), max(point.group.losses)], [place, place], color=color, linewidth=1
        )
        axes.plot(
            point.group.losses, [place] * len(point.group.runs), "o", color=color, markersize=3, alpha=0.6
        )
        axes.plot(
            point.group.loss,
            place,
            "*" if place == 0 else "D",
            color=color,
            markersize=11 if place == 0 else 5,
        )
    names = list(points[0].at)
    is_one = len(names) == 1  # then its name stands beside the axis
    axes.set_yticks(
        range(len(ranked)), [show(point.at[names[0]]) if is_one else point.label for point in ranked]
    )
    axes.set_ylim(len(ranked) - 0.5, -0.5)
    axes.set_ylabel(names[0] if is_one else "")
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(LOSS)
    heading = [f"the best {len(ranked)} of {len(points)}"] if len(ranked) < len(points) else []
    if kept := span([loss for point in ranked for loss in point.group.losses]):
        axes.set_xlim(kept)
        heading.append("what lies beyond the picture has diverged")
    figure.suptitle(describe(points, *heading), fontsize=9)
    return figure


def place_of(point: Point, axis: Axis, x: str) -> float:
    """Where a group lies on the horizontal axis: by its value of a setting, or by what its training took."""
    if x not in COST:
        return axis.position(point.at[axis.name])
    return group_cost(point.group, x)


def group_cost(group: Group, x: str) -> float:
    """What a group's training took on average, in tokens or seconds."""
    return mean(cost(run, x, run.result.step) for run in group.runs if run.result)


def label_x(axes: "Axes", axis: Axis, x: str) -> None:
    """The ticks of the horizontal axis, which all panels share."""
    if x in COST:
        return scale_cost(axes)
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if axis.is_geometric:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(float(value))))
        axes.xaxis.set_minor_locator(NullLocator())
    if not axis.is_numeric or len(axis.values) <= 8:
        labels = [show(value) for value in axis.values]
        is_long = sum(map(len, labels)) > 30
        axes.set_xticks(
            [axis.position(value) for value in axis.values], labels, rotation=30 if is_long else 0
        )
    return None


def scale_cost(axes: "Axes") -> None:
    """Ticks such as 300k and 2M, and a logarithmic axis for what differs by much."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    lowest, highest = axes.dataLim.minposx, axes.dataLim.x1
    if lowest > 0 and highest > 8 * lowest:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
