"""What is written about runs: tables, pictures, and pages that any browser opens and that load nothing."""

import math
import shlex
import shutil
import textwrap
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from pandas import DataFrame, Series

from gpt.analysis.compare import COSTS, Comparison, check_column, compare_runs, read_run, show, sort_table
from gpt.analysis.plots import draw_pictures, draw_run, locate, save
from gpt.checkpoint import find, load, read
from gpt.drawing import draw_attention
from gpt.errors import UserError, one_line, printable, shorten
from gpt.files import atomic, write_text
from gpt.model import attention_weights
from gpt.run import Result, Run
from gpt.tokenizer import tokenizer_class

RESULTS = ["loss", "accuracy", "difference", "noise", "seeds", "majority", "naive_bayes", *COSTS]
# What attention is shown on: the text of which the tokenizer knows most
TEXTS = ("ROMEO:\nO, speak again, bright angel", "abcdefghijklmnop")
MOST_TOKENS, MOST_LAYERS, MOST_HEADS, MOST_SAMPLES = 24, 12, 16, 12


def compare(
    folder: Path, x: str = "steps", sort: str = "", columns: Sequence[str] = (), baseline: str = ""
) -> str:
    """Write compare.md, compare.csv and the pictures into `folder`, and return what a terminal should show.

    `x` is what the pictures have on their horizontal axis: "steps" (and the settings that vary), "tokens",
    "seconds" or "flops". The others are as in `scripts/compare.py`. Raises UserError if there is nothing to
    compare, and for what describes no column or line of the table.
    """
    found, width = compare_runs(folder, baseline), shutil.get_terminal_size((140, 24)).columns
    table = sort_table(found.table, sort)
    for name in columns:
        check_column(name, table)
    cells = render(table)[list(columns) or choose_columns(found)]
    notes = fill("notes.txt", found=found, baseline=shorten(baseline or "the best", 100)).splitlines()
    write_text(folder / "compare.md", "\n\n".join([markdown(cells), *notes, *found.left_out]) + "\n")
    write_text(folder / "compare.csv", table.to_csv(index=False))
    pictures = {f"{name}.png": figure for name, figure in draw_pictures(found, x).items()}
    for name, figure in pictures.items():
        with atomic(folder / name) as file:
            file.write(save(figure, "png"))
    shown = cells if columns else fit(cells, found.settings, width)
    if dropped := [name for name in cells if name not in shown]:
        notes.insert(0, f"No room here for {', '.join(dropped)}: see compare.csv, or choose with --columns.")
    written = f"written into {folder}: {', '.join(['compare.md', 'compare.csv', *pictures])}"
    parts = [aligned(shown), [textwrap.fill(note, width) for note in notes], found.left_out, [written]]
    return "\n\n".join("\n".join(part) for part in parts if part)


def choose_columns(found: Comparison) -> list[str]:
    """The columns that say something: names of runs unless they repeat what varies, what varies, results."""
    table, settings = found.table, found.settings
    silent = set() if table["seeds"].max() > 1 else {"noise", "seeds"}
    silent |= set() if table["noise"].notna().any() else {"noise", "difference"}
    names = table["run"]
    repeat = [*names.str.match(r"[A-Za-z][^/]*$"), *(names.str.contains(name).all() for name in settings)]
    results = [name for name in RESULTS if name in table and name not in silent]
    return [*([] if all(repeat) and settings else ["run"]), *settings, *results]


def render(table: DataFrame) -> DataFrame:
    """The cells as text, with the digits that mean something, and blanks for errors that only others have."""
    metric = "loss" if "loss" in table else "accuracy"
    spread = table["sd"][table["sd"] > 0].median() if metric == "loss" else math.nan
    digits = 4 if math.isnan(spread) else min(4, max(2, 1 - math.floor(math.log10(spread))))

    def write(name: str, form: str) -> Series:
        return table[name].map(lambda value: form.format(value) if value == value else "")

    texts = table.map(show).assign(run=table["run"].map(lambda name: cut(name, 60)))
    for name in {"majority", "naive_bayes"} & set(table):
        texts[name] = write(name, "{:.4f}")
    for name, sign, error in ((metric, "", "sd"), ("difference", "+", "interval")):
        errors = write(error, f" ± {{:.{digits}f}}")
        texts[name] = write(name, f"{{:{sign}.{digits}f}}") + errors.str.ljust(errors.str.len().max())
    texts.loc[table["noise"].isna(), "difference"] = ""
    return texts


def cut(name: str, width: int) -> str:
    """A run's name, which begins with a date and ends with what was typed, in at most `width` characters."""
    return name if len(name) <= width else f"{name[:10]}...{name[13 - width :]}"


def fit(cells: DataFrame, settings: list[str], width: int) -> DataFrame:
    """The columns of cells for which a terminal has room.

    What runs took is dropped first, then settings in which most lines agree, then what is known of them.
    """
    cells = cells.map(lambda cell: cut(cell, min(44, max(24, 3 * width // 10))))
    settings = sorted(settings, key=lambda name: -cells[name].value_counts().max())
    for name in [*COSTS[::-1], *settings, *RESULTS[:1:-1]]:
        if max(map(len, aligned(cells))) > width:
            cells = cells.drop(columns=name, errors="ignore")
    return cells


def aligned(cells: DataFrame, separator: str = "  ") -> list[str]:
    """The lines of a table, below one of the columns' names. Texts begin, and numbers end, in one column."""
    columns = []
    for name, column in cells.items():
        side = "left" if name != "run" and column.str.match(r"[+-]?\d").any() else "right"
        columns.append(Series([name, *column]).str.pad(max(len(name), column.str.len().max()), side))
    return [separator.join(line).rstrip() for line in zip(*columns, strict=True)]


def markdown(cells: DataFrame) -> str:
    """The same as a Markdown table, which also reads well in an editor."""
    names, *lines = aligned(cells.map(lambda cell: cell.replace("|", "\\|")), " | ")
    rule = " | ".join("-" * (len(name) - 1) + ":" for name in names.split(" | "))
    return "\n".join(f"| {line} |" for line in (names, rule, *lines))


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html about the run that it is, or else about the runs in it, and return its path.

    Raises UserError if no run has finished.
    """
    is_run = (folder / "config.yaml").is_file()
    values = describe_run(folder) if is_run else describe_sweep(folder)
    page = fill("run.html" if is_run else "sweep.html", name=folder.resolve().name, **values)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def fill(template: str, **values: Any) -> str:
    """A file of `templates/` with these values, which are text for HTML, whatever is in them."""
    loader = PackageLoader("gpt.analysis")
    jinja = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"printable": printable, "shell": shlex.join, "show": show}
    return jinja.get_template(template).render(values)


def describe_run(folder: Path) -> dict[str, Any]:
    """What the page of a run shows. A part for which the folder has nothing is a text that says so."""
    run = read_run(folder)
    if run["problem"]:
        raise UserError(f"folder = {folder}: {run['problem']}; give a run that has finished")
    unit = "example" if "task.name" in run else tokenizer_class(run.get("data.tokenizer", "char")).loss_unit
    return {
        "run": run,
        "result": Result.read(folder / "result.json"),
        "about": Run(folder).origin,
        "curves": attempt(lambda: embed(draw_run(folder / "metrics.csv", unit))),
        "samples": attempt(lambda: read_samples(Run(folder), dict(run["curve"]))),
        "attention": attempt(lambda: draw_layers(folder)),
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
    }


def describe_sweep(folder: Path) -> dict[str, Any]:
    """What the page of many runs shows. Raises UserError if there is nothing to compare."""
    found = compare_runs(folder)
    points, settings = locate(found, "steps")
    return {
        "found": found,
        "varied": {**points[settings], "seed": found.runs["seed"].dropna()},
        "cells": render(found.table)[choose_columns(found)].drop(columns="run", errors="ignore"),
        "pages": {name: (folder / name / "report.html").is_file() for name in found.runs["name"]},
        "pictures": {name: embed(figure) for name, figure in draw_pictures(found).items()},
        "about": Run(folder / found.runs["name"].iloc[0]).origin,
    }


def attempt(make: Callable[[], Any]) -> Any:
    """A part of a page, or a text that says why it is missing."""
    try:
        return make()
    except Exception as error:
        return one_line(error)


def embed(figure: Figure) -> str:
    """A picture as an address that holds all of it."""
    return f"data:image/svg+xml;base64,{b64encode(save(figure, 'svg')).decode()}"


def read_samples(run: Run, losses: dict[int, float]) -> list[tuple[str, str]]:
    """Titles, and what the model wrote after validations. Of many, some, the first and last included."""
    history = read(run.last)["callbacks"].get("samples", {}).get("history", []) if run.last else []
    if not history:
        return [("the last sample", (run.folder / "sample.txt").read_text(encoding="utf-8"))]
    titles = {step: f", val loss {loss:.4f}" for step, loss in losses.items()}
    samples = [(f"step {step:,}{titles.get(step, '')}", text) for step, text in history]
    places = np.linspace(0, len(samples) - 1, min(MOST_SAMPLES, len(samples)))
    return [samples[round(place)] for place in places]


def draw_layers(folder: Path) -> list[str]:
    """The attention of each layer of the best model, on a short text that its tokenizer knows."""
    model, tokenizer, _ = load(find(str(folder)))
    known = max(map(tokenizer.drop_unknown, TEXTS), key=len) or tokenizer.default_prompt
    ids = tokenizer.encode(known)[None, : min(MOST_TOKENS, model.config.context_length)]
    tokens = [printable(tokenizer.decode([id])) for id in ids[0].tolist()]
    weights = attention_weights(model, ids)[:MOST_LAYERS, 0, :MOST_HEADS].detach().float()
    return [embed(draw_attention(layer, tokens, "")) for layer in weights]
