"""What varies between groups of runs, and which of it becomes an axis, the lines or the panels of a picture."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Any

from gpt.cli.records import Group
from gpt.errors import shorten

MOST_LINES, MOST_PANELS = 7, 6  # as many lines as the palette has colours; panels beside or below each other
MOST_NAMED = 6  # settings in the name of a group


@dataclass(frozen=True)
class Point:
    """A group of runs, and where it lies: {"n_layer": 2, "arch": "gpt1"}."""

    group: Group
    at: dict[str, Any]

    @property
    def label(self) -> str:
        return shorten(
            ", ".join(
                show(value) if name == "run" else f"{name} {show(value)}" for name, value in self.at.items()
            ),
            70,
        )


@dataclass(frozen=True)
class Axis:
    """One thing that varies, with its distinct values: numbers from the lowest, or texts, best first."""

    name: str
    values: list[Any]

    @property
    def is_numeric(self) -> bool:
        return not isinstance(self.values[0], str)

    @property
    def is_geometric(self) -> bool:
        """Whether the values are spaced more evenly on a logarithmic axis."""
        if not self.is_numeric or len(self.values) < 3 or self.values[0] <= 0:
            return False
        neighbours = list(zip(self.values, self.values[1:], strict=False))
        gaps, ratios = [b - a for a, b in neighbours], [math.log(b / a) for a, b in neighbours]
        return max(ratios) * min(gaps) < max(gaps) * min(ratios)

    def position(self, value: Any) -> float:
        """Where a value lies on the axis. Texts are one apart."""
        return float(value) if self.is_numeric else float(self.values.index(value))


@dataclass(frozen=True)
class Layout:
    """Which setting is the horizontal axis, and which ones are told apart by lines, by columns and by rows of panels."""

    x: Axis
    lines: Axis | None
    columns: Axis | None
    rows: Axis | None
    others: list[Axis]  # beyond the fourth: only the best run's value is shown


def locate(groups: list[Group]) -> list[Point]:
    """The groups as points in the space of the settings that vary, or of the runs' names if many settings do."""
    places = [
        {shorten(name, 24): simplify(value) for name, value in group.settings.items()} for group in groups
    ]
    if len(places[0]) > MOST_NAMED or len({str(place) for place in places}) < len(places):
        places = [{"run": shorten(group.runs[0].name, 60)} for group in groups]
    for name in places[0]:
        if any(isinstance(place[name], str) for place in places):
            for place in places:
                place[name] = show(place[name])
    return [Point(group, place) for group, place in zip(groups, places, strict=True)]


def simplify(value: Any) -> Any:
    """A setting as a number that can be drawn, or else as a short text."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return value if is_number else shorten(value, 24)


def show(value: Any) -> str:
    """A value as a label: 2, 0.0003, gpt1."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cost_ratio(points: list[Point], axis: Axis, cost: Callable[[Group], float]) -> float:
    """How many times the cheapest value of a setting the dearest one costs, on average over the others."""
    costs = [
        mean(cost(point.group) for point in points if point.at[axis.name] == value) for value in axis.values
    ]
    return max(costs) / min(costs) if min(costs) > 0 else 0.0


def find_axes(points: list[Point]) -> list[Axis]:
    """What varies, in the order in which it is named."""
    axes = []
    for name in points[0].at:
        values = list(dict.fromkeys(point.at[name] for point in points))
        axes.append(Axis(name, values if isinstance(values[0], str) else sorted(values)))
    return axes


def arrange(points: list[Point], cost: Callable[[Group], float] | None = None) -> Layout | None:
    """The layout of a sweep over a grid. None for points that lines would not explain: few of a grid, or unordered ones.

    A line runs through the numeric setting with most values or, if `cost` is given, through the setting that costs most.
    """
    axes = find_axes(points)
    is_grid = 2 * len(points) >= math.prod(len(axis.values) for axis in axes)
    if not is_grid or not axes or (len(axes) == 1 and not axes[0].is_numeric):
        return None
    if cost is None:
        x = min(axes, key=lambda axis: (not axis.is_numeric, -len(axis.values)))
    else:
        x = max(axes, key=lambda axis: cost_ratio(points, axis, cost))
    rest = sorted((axis for axis in axes if axis is not x), key=lambda axis: -len(axis.values))
    lines, columns, rows = (rest[place] if place < len(rest) else None for place in range(3))
    for axis, most in ((lines, MOST_LINES), (columns, MOST_PANELS), (rows, MOST_PANELS)):
        if axis is not None and len(axis.values) > most:
            return None
    return Layout(x, lines, columns, rows, rest[3:])
