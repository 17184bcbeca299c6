"""A table of many runs, best first, and pictures of them, written into the folder that holds the runs."""

import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from gpt.cli.pictures import draw_pictures
from gpt.cli.records import Group, RunRecord, group_runs, read_runs
from gpt.cli.table import (
    Line,
    aligned,
    check_columns,
    choose_columns,
    comma_separated,
    find_baseline,
    fit,
    make_lines,
    markdown,
    render,
    sort_lines,
)
from gpt.cli.task_table import are_tasks, compare_tasks, task_lines
from gpt.errors import UserError, shorten
from gpt.files import write_text


def compare(
    folder: Path,
    x: str = "steps",
    *,
    sort: str = "loss",
    columns: Sequence[str] = (),
    baseline: str | None = None,
    width: int | None = None,
) -> str:
    """Write compare.md, compare.csv and the pictures into `folder`, and return what a terminal should show.

    `x` is what the pictures have on their horizontal axis: "steps" (and the settings that vary), "tokens" or "seconds".
    `sort`, `columns` and `baseline` are as in `scripts/compare.py`. `width` is that of the terminal, by default this one's.
    Runs that did not finish or are damaged are named below the table. Raises UserError if no run has finished.
    """
    runs, groups = read_groups(folder)
    if are_tasks(groups):
        return compare_tasks(folder, runs, groups)
    reference = find_baseline(groups, baseline) if baseline else groups[0]
    lines = sort_lines(make_lines(groups, reference), sort)
    check_columns(columns, lines[0])
    chosen = list(columns) or choose_columns(lines)
    width = width or shutil.get_terminal_size((140, 24)).columns
    cells, dropped = (render(lines, chosen), []) if columns else fit(lines, chosen, width)
    notes, unfinished = (
        explain(groups, baseline or "the best"),
        [f"{run.name}: {run.problem}" for run in runs if not run.result],
    )
    whole = "\n\n".join([markdown(render(lines, chosen)), *notes, *unfinished])
    written = write(folder, whole, lines, groups, x)
    if dropped:
        notes.insert(
            0,
            f"No room here for {', '.join(map(shorten, dropped))}: see compare.csv, or choose with --columns.",
        )
    shown = [*(line.rstrip() for line in aligned(cells)), "", *(textwrap.fill(note, width) for note in notes)]
    return "\n".join([*shown, *(["", *unfinished] if unfinished else []), "", written])


def print_csv(folder: Path, sort: str = "loss", baseline: str | None = None) -> str:
    """The whole table as CSV. Nothing is written. Raises UserError if no run has finished."""
    _, groups = read_groups(folder)
    if are_tasks(groups):
        return comma_separated(task_lines(groups))
    reference = find_baseline(groups, baseline) if baseline else groups[0]
    return comma_separated(sort_lines(make_lines(groups, reference), sort))


def read_groups(folder: Path) -> tuple[list[RunRecord], list[Group]]:
    """All runs under a folder, and those that have finished as groups. Raises UserError if there are none to compare."""
    runs = read_runs(folder)
    groups = group_runs(runs)
    if not groups:
        raise UserError(f"folder = {folder}: no run in it has a best val/loss; keep callbacks.best")
    return runs, groups


def explain(groups: Sequence[Group], baseline: str) -> list[str]:
    """How to read the table, whose differences are to the group that `baseline` describes."""
    has_seeds = any(len(group.runs) > 1 for group in groups)
    is_converted = any(
        run.settings.get("data.tokenizer", "char") != "char" for group in groups for run in group.runs
    )
    note = "loss: the lowest val/loss of a run, in nats per character"
    note += " (converted, for runs that read bytes or byte pairs)" if is_converted else ""
    notes = [note + (", mean ± standard deviation over seeds." if has_seeds else ".")]
    if len(groups) > 1:
        if has_seeds:
            interval = "± its 95 % confidence interval (Welch's t test)"
            notes.append(
                f"difference: to {shorten(baseline, 100)}, {interval}. It exceeds the noise if the interval does not contain 0."
            )
            if any(len(group.runs) == 1 for group in groups):
                notes[-1] += " It is unknown where one of the two has a single seed."
        else:
            notes.append(
                f"difference: to {shorten(baseline, 100)}. Each line is one seed, so the noise is not known: try seed=1,2,3."
            )
    return notes


def write(folder: Path, table: str, lines: Sequence[Line], groups: list[Group], x: str) -> str:
    """Write the table and the pictures, and return the line that names them. Raises UserError if there is no room."""
    try:
        write_text(folder / "compare.md", table + "\n")
        write_text(folder / "compare.csv", comma_separated(lines))
        pictures = draw_pictures(groups, folder, x)
    except ImportError:
        return "written: compare.md, compare.csv; for the pictures: pip install matplotlib"
    except OSError as error:
        raise UserError(f"folder = {folder}: {error.strerror}; make room, or compare a copy of it") from None
    return f"written into {folder}: {', '.join(['compare.md', 'compare.csv', *pictures])}"
