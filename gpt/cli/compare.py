"""A table of many runs, best first, and pictures of them, written into the folder that holds the runs."""

import csv
import io
from pathlib import Path

from gpt.cli.pictures import draw_pictures
from gpt.cli.records import Group, group_runs, read_runs, short_names
from gpt.files import write_text
from gpt.settings import UserError, shorten


def compare(folder: Path, x: str = "steps") -> str:
    """Write compare.md, compare.csv and the pictures into `folder`, and return what a terminal should show.

    `x` is what the pictures have on their horizontal axis: "steps" (and the settings that vary), "tokens" or "seconds".
    Runs that did not finish or are damaged are named below the table. Raises UserError if no run has finished.
    """
    runs = read_runs(folder)
    groups = group_runs(runs)
    if not groups:
        raise UserError(f"folder = {folder}: no run in it has a best val/loss; keep callbacks.best")
    lines = table_lines(groups)
    unfinished = [f"{run.name}: {run.problem}" for run in runs if not run.result]
    table = "\n\n".join([markdown(lines), *unfinished])
    try:
        write_text(folder / "compare.md", table + "\n")
        write_text(folder / "compare.csv", comma_separated(lines))
        pictures = draw_pictures(groups, folder, x)
    except ImportError:
        return f"{table}\n\nwritten: compare.md, compare.csv; for the pictures: pip install matplotlib"
    except OSError as error:
        raise UserError(f"folder = {folder}: {error.strerror}; make room, or compare a copy of it") from None
    return f"{table}\n\nwritten into {folder}: {', '.join(['compare.md', 'compare.csv', *pictures])}"


def table_lines(groups: list[Group]) -> list[dict[str, str]]:
    """The lines of the table, as text: column -> cell."""
    has_seeds = any(len(group.runs) > 1 for group in groups)
    names, lines = short_names(list(groups[0].settings)), []
    for group in groups:
        line = dict(zip(names, map(shorten, group.settings.values()), strict=True))
        line["val loss"] = f"{group.loss:.4f}"
        if has_seeds:
            line |= {"sd": "" if group.spread is None else f"{group.spread:.4f}", "seeds": str(len(group.runs))}
        line |= {"parameters": f"{group.average('parameters'):.0f}", "characters/s": f"{group.average('chars_per_second'):.0f}"}
        lines.append(line | {"seconds": f"{group.average('seconds'):.0f}"})
    return lines


def markdown(lines: list[dict[str, str]]) -> str:
    """A Markdown table whose columns are padded, so that it also reads well in a terminal."""
    lines = [{escape(key): escape(cell) for key, cell in line.items()} for line in lines]
    width = {key: max(len(key), *(len(line[key]) for line in lines)) for key in lines[0]}
    header = {key: key for key in width}
    rule = {key: "-" * (size - 1) + ":" for key, size in width.items()}
    return "\n".join(
        "| " + " | ".join(line[key].rjust(size) for key, size in width.items()) + " |" for line in (header, rule, *lines)
    )


def escape(cell: str) -> str:
    """A cell in which nothing ends the cell or the line."""
    return shorten(cell).replace("|", "\\|")


def comma_separated(lines: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, lines[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
