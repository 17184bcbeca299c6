"""The table of a comparison: what it holds, and the part of it that fits a terminal."""

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist, median, variance
from typing import Any

from gpt.cli.records import Group
from gpt.errors import UserError, did_you_mean, shorten

Line = Mapping[str, Any]  # a column's name and its value, of one group of runs
# The columns beside what varies. Those that are dropped first, where a terminal has no room, are the last of these
RESULTS = ("loss", "difference", "noise", "seeds", "seconds", "parameters", "chars_per_second")
IN_CSV_ONLY = (
    "sd",
    "interval",
    "bits_per_char",
)  # in a terminal, the first two stand beside what they belong to
LARGEST_CELL = 24
T_975 = (
    12.706,
    4.303,
    3.182,
    2.776,
    2.571,
    2.447,
    2.365,
    2.306,
    2.262,
    2.228,
)  # of Student's t, 1 to 10 degrees of freedom


def make_lines(groups: Sequence[Group], baseline: Group) -> list[Line]:
    """A line for each group, with every column. A value that is not known is None, or nan for a number."""
    lines: list[Line] = []
    for group in groups:
        interval = welch_interval(group.losses, baseline.losses)
        difference = group.loss - baseline.loss
        verdict = "unknown" if interval is None else "exceeds" if abs(difference) > interval else "within"
        is_baseline = group is baseline
        results = {
            "loss": group.loss,
            "sd": group.spread,
            "seeds": len(group.runs),
            "difference": difference,
            "interval": None if is_baseline else interval,
            "noise": None if is_baseline else verdict,
            "bits_per_char": group.loss / math.log(2),
            "parameters": group.average("parameters"),
            "chars_per_second": group.average("chars_per_second"),
            "seconds": group.average("seconds"),
        }
        lines.append({"run": name_of(group)} | dict(group.settings) | results)
    return lines


def name_of(group: Group) -> str:
    """The folder of a group's first run, without the seed if there are others."""
    name = group.runs[0].name
    return re.sub(r"[,_]?\bseed=\d+$", "", name) or name if len(group.runs) > 1 else name


def welch_interval(losses: Sequence[float], others: Sequence[float]) -> float | None:
    """Half the width of the 95 % confidence interval of a difference of means (Welch 1947). None if one has a single value."""
    if min(len(losses), len(others)) < 2:
        return None
    errors = [variance(found) / len(found) for found in (losses, others)]
    if not any(errors):
        return 0.0
    squares = [error**2 / (len(found) - 1) for error, found in zip(errors, (losses, others), strict=True)]
    return student_t(math.floor(sum(errors) ** 2 / sum(squares))) * math.sqrt(sum(errors))


def student_t(freedom: int) -> float:
    """The 0.975 quantile of Student's t, from a table or, beyond it, from its expansion around the normal distribution."""
    if freedom <= len(T_975):
        return T_975[max(freedom, 1) - 1]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))


def find_baseline(groups: Sequence[Group], text: str) -> Group:
    """The group that `text` describes: by what varies, as in arch=gpt1,n_layer=2, or by a part of its run's name.

    Raises UserError unless it describes exactly one.
    """
    parts = set(text.split(","))
    described = [{f"{name}={show(value)}" for name, value in group.settings.items()} for group in groups]
    found = [group for group, words in zip(groups, described, strict=True) if parts <= words]
    found = found or [group for group in groups if any(text in run.name for run in group.runs)]
    if len(found) != 1:
        reason = f"describes {len(found)} lines of the table" if found else "describes no line of the table"
        raise UserError(
            f"--baseline = {shorten(text)}: {reason}; write what varies, as n_layer=2,n_head=4, or a run's name"
        )
    return found[0]


def sort_lines(lines: Sequence[Line], column: str) -> list[Line]:
    """The lines in the order of a column, numbers before texts. Raises UserError if there is no such column."""
    check_columns([column], lines[0])

    def place(line: Line) -> tuple[bool, float, str]:
        value = line[column]
        is_number = isinstance(value, (int, float)) and not math.isnan(value)
        return (False, value, "") if is_number else (True, 0.0, str(value))

    return sorted(lines, key=place)


def check_columns(columns: Sequence[str], line: Line) -> None:
    """Raises UserError for a column that the table does not have."""
    for column in columns:
        if column not in line:
            raise UserError(
                f"column = {shorten(column)}: the table has no such column; {did_you_mean(column, line)}"
            )


def choose_columns(lines: Sequence[Line]) -> list[str]:
    """The columns that say something: the names of runs unless these repeat what varies, what varies, and results."""
    settings = [name for name in lines[0] if name not in ("run", *RESULTS, *IN_CSV_ONLY)]
    named = not all(
        re.fullmatch(r"[A-Za-z][\w.]*=[^/]*|job", line["run"]) for line in lines
    )  # the jobs of a sweep are called so
    has_seeds = any(line["seeds"] > 1 for line in lines)
    results = [name for name in RESULTS if has_seeds or name not in ("noise", "seeds")]
    return [
        *(["run"] if named or not settings else []),
        *settings,
        *(results if len(lines) > 1 else results[:1] + results[2:]),
    ]


def render(lines: Sequence[Line], columns: Sequence[str], name_width: int = 60) -> list[dict[str, str]]:
    """The cells of some columns as text, with the digits that mean something."""
    spreads = [line["sd"] for line in lines if line["sd"]]
    intervals = any(line["interval"] is not None for line in lines)
    digits = min(4, max(2, 1 - math.floor(math.log10(median(spreads))))) if spreads else 4
    formats: dict[str, Callable[[Line], str]] = {
        "run": lambda line: cut_middle(shorten(line["run"], 1000), name_width),
        "loss": lambda line: with_error(f"{line['loss']:.{digits}f}", line["sd"], digits, bool(spreads)),
        "difference": lambda line: (
            with_error(f"{line['difference']:+.{digits}f}", line["interval"], digits, intervals)
            if line["noise"]
            else ""
        ),
    }
    formats |= {name: lambda line, name=name: show(float(line[name])) for name in RESULTS[4:]}  # type: ignore[misc]
    return [
        {column: formats.get(column, lambda line: show(line[column]))(line) for column in columns}
        for line in lines
    ]  # noqa: B023


def with_error(text: str, error: float | None, digits: int, aligned: bool) -> str:
    """A number and its error, and in their place blanks if only other lines have one."""
    tail = "" if error is None else f" ± {error:.{digits}f}"
    return text + (tail.ljust(digits + 5) if aligned else tail)


def show(value: Any) -> str:
    """A value in a cell: 2, 0.0003, 1.61M, gpt1; nothing for one that is not known."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) >= 1e15:
        return shorten(value, LARGEST_CELL)
    if isinstance(value, int) and abs(value) < 100_000:
        return str(value)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.4g}"


def cut_middle(name: str, width: int) -> str:
    """A name without its middle if it is too long: run folders begin with their date and end with what was typed."""
    start = min(10, width // 2)
    return name if len(name) <= width else f"{name[:start]}...{name[len(name) - (width - start - 3) :]}"


def fit(lines: Sequence[Line], columns: Sequence[str], width: int) -> tuple[list[dict[str, str]], list[str]]:
    """The cells of the columns that fit into a width, and the names of those that do not.

    What a run took is dropped first, then the settings in which most lines agree.
    """
    kept = list(columns)
    agreeing = {
        name: max(Counter(show(line[name]) for line in lines).values())
        for name in columns
        if name in lines[0]
    }
    settings = sorted(
        (name for name in columns if name not in ("run", *RESULTS)), key=lambda name: -agreeing[name]
    )
    expendable = [*reversed(RESULTS[4:]), *settings, *reversed(RESULTS[1:4])]
    for name in [name for name in expendable if name in kept]:
        if len(aligned(cells := render(lines, kept, name_width(width)))[0]) <= width:
            return cells, [column for column in columns if column not in kept]
        kept.remove(name)
    return render(lines, kept, name_width(width)), [column for column in columns if column not in kept]


def name_width(width: int) -> int:
    """How much of a terminal's width the names of runs may take."""
    return min(44, max(20, 3 * width // 10))


def aligned(lines: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a table for a terminal, below a line of the columns' names. Texts begin, and numbers end, in one column."""
    whole = [{key: key for key in lines[0]}, *lines]
    width = {key: max(len(line[key]) for line in whole) for key in lines[0]}
    is_text = {key for key in width if not any(re.match(r"[+-]?\d", line[key]) for line in lines)} | {"run"}
    cells = [
        [line[key].ljust(size) if key in is_text else line[key].rjust(size) for key, size in width.items()]
        for line in whole
    ]
    return ["  ".join(line) for line in cells]


def markdown(lines: Sequence[Mapping[str, str]]) -> str:
    """A Markdown table whose columns are padded, so that it also reads well in an editor."""
    lines = [{escape(key): escape(cell) for key, cell in line.items()} for line in lines]
    width = {key: max(len(key), *(len(line[key]) for line in lines)) for key in lines[0]}
    header = {key: key for key in width}
    rule = {key: "-" * (size - 1) + ":" for key, size in width.items()}
    return "\n".join(
        "| " + " | ".join(line[key].rjust(size) for key, size in width.items()) + " |"
        for line in (header, rule, *lines)
    )


def escape(cell: str) -> str:
    """A cell in which nothing ends the cell or the line."""
    return cell.replace("|", "\\|")


def comma_separated(lines: Sequence[Line]) -> str:
    """All columns with all digits, as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    for line in lines:
        unknown = {key: "" for key, value in line.items() if isinstance(value, float) and math.isnan(value)}
        texts = {
            key: shorten(value, 1000) for key, value in line.items() if isinstance(value, (str, list, dict))
        }
        writer.writerow(dict(line) | unknown | texts)
    return text.getvalue()
