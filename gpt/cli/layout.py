"""What varies between groups of runs, and which of it becomes an axis, the lines or the panels of a picture."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from gpt.cli.records import Group, short_names
from gpt.settings import shorten

MOST_LINES, MOST_PANELS = 7, 6  # as many lines as the palette has colours; panels beside or below each other


@dataclass(frozen=True)
class Point:
    """A group of runs, and where it lies: {"n_layer": 2, "arch": "gpt1"}."""

    group: Group
    at: dict[str, Any]

    @property
    def label(self) -> str:
        return shorten(", ".join(f"{name} {show(value)}" for name, value in self.at.items()), 70)


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
    """The groups as points in the space of what varies.

    The folders of a sweep say what was varied (`arch=gpt1,n_layer=2,seed=1`), also where one choice sets many settings.
    Where they do not tell the groups apart, the settings themselves are the space, or the folders' names if many settings vary.
    """
    places = [read_name(group) for group in groups]
    if not (places[0] and all(place.keys() == places[0].keys() for place in places)) or count_distinct(places) < len(groups):
        if len(groups[0].settings) <= 6:
            names = short_names(list(groups[0].settings))
            places = [dict(zip(names, map(simplify, group.settings.values()), strict=True)) for group in groups]
        else:
            places = [{"run": shorten(group.runs[0].name, 40)} for group in groups]
    for name in list(places[0]):
        values = [place[name] for place in places]
        has_text = any(isinstance(value, str) for value in values)
        for place, value in zip(places, values, strict=True):
            if len(set(map(str, values))) == 1 and len(groups) > 1:
                del place[name]
            elif has_text:
                place[name] = show(value)
    return [Point(group, place) for group, place in zip(groups, places, strict=True)]


def read_name(group: Group) -> dict[str, Any]:
    """What the folders of a sweep's jobs say that was varied, but for the seed. Empty if they are no such folders."""
    places = []
    for run in group.runs:
        pairs = [part.partition("=") for part in run.name.rpartition("/")[2].split(",")]
        if not all(name and equals for name, equals, _ in pairs):
            return {}
        places.append({shorten(name, 24): read_value(text) for name, _, text in pairs if name != "seed"})
    return places[0] if all(place == places[0] for place in places) else {}


def count_distinct(places: Sequence[dict[str, Any]]) -> int:
    return len({str(place) for place in places})


def read_value(text: str) -> Any:
    """A number that is written in a folder's name, or else its text."""
    for kind in (int, float):
        try:
            return simplify(kind(text))
        except ValueError:
            continue
    return shorten(text, 24)


def simplify(value: Any) -> Any:
    """A setting as a number that can be drawn, or else as a short text."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15
    return value if is_number else shorten(value, 24)


def show(value: Any) -> str:
    """A value as a label: 2, 0.0003, gpt1."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cost_ratio(points: list[Point], axis: Axis, cost: Callable[[Group], float]) -> float:
    """How many times the cheapest value of a setting the dearest one costs, on average over the others."""
    costs = [mean(cost(point.group) for point in points if point.at[axis.name] == value) for value in axis.values]
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
