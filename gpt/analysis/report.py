"""A page about a run or a sweep that any browser opens: one file, which loads nothing from anywhere.

The libraries of the extra `analysis` are imported when a page is written, because every run ends with `report_line`.
"""

import os
import shlex
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.files import write_text
from gpt.settings import UserError, one_line, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEEDS_EXTRA = 'needs the extra analysis: pip install -e ".[analysis]"'
TEXT = "ROMEO:\nO, speak again, bright angel"  # what attention is shown on, if the tokenizer knows it
MOST_TOKENS, MOST_LAYERS, MOST_HEADS, MOST_SAMPLES = 24, 12, 16, 12


def report_line(folder: Path) -> str:
    """Write the page, and say where it is, or why there is none: the runs that it is about have ended all the same."""
    try:
        return f"report: {shlex.quote(printable(os.path.relpath(write_report(folder))))}"
    except ImportError:
        return f"report: (none), it {NEEDS_EXTRA}"
    except Exception as error:
        return f"report: (none), because of {one_line(error)}"


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html about the run that it is, or else about the runs in it, and return its path.

    Raises UserError if no run has finished, and ImportError without the extra.
    """
    from jinja2 import Environment, FileSystemLoader

    loader = FileSystemLoader(Path(__file__).parent / "templates")
    jinja = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"printable": printable, "shell": shlex.join}
    is_run = (folder / "config.yaml").is_file()
    values = describe_run(folder) if is_run else describe_sweep(folder)
    page = jinja.get_template("run.html" if is_run else "sweep.html").render(name=folder.resolve().name, **values)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def describe_run(folder: Path) -> dict[str, Any]:
    """What the page of a run shows. A part for which the folder has nothing is a text that says so."""
    from gpt.analysis.plots import draw_run
    from gpt.analysis.runs import read_about, read_run
    from gpt.runs.result import Result

    run = read_run(folder)
    if run["problem"]:
        raise UserError(f"folder = {folder}: {run['problem']}; give a run that has finished")
    is_char = run.get("data.tokenizer", "char") == "char"
    unit = "example" if "task.name" in run else "character" if is_char else "token"
    return {
        "run": run,
        "result": Result.read(folder / "result.json"),
        "about": read_about(folder),
        "curves": attempt(lambda: embed(draw_run(folder / "metrics.csv", unit))),
        "samples": attempt(lambda: read_samples(folder, dict(run["curve"]))),
        "attention": attempt(lambda: draw_layers(folder)),
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
    }


def describe_sweep(folder: Path) -> dict[str, Any]:
    """What the page of many runs shows. Raises UserError if there is nothing to compare."""
    from gpt.analysis.compare import choose_columns, compare_runs, render
    from gpt.analysis.plots import draw_pictures
    from gpt.analysis.runs import read_about, show

    found = compare_runs(folder)
    names = {line: list(runs) for line, runs in found.runs.groupby("line")["name"]}
    varied = {name: list(map(show, found.table[name].drop_duplicates())) for name in found.settings}
    return {
        "found": found,
        "cells": render(found.table, [name for name in choose_columns(found) if name != "run"]),
        "names": [[(name, (folder / name / "report.html").is_file()) for name in names[line]] for line in found.table.index],
        "varied": varied | {"seed": list(map(show, sorted(found.runs["seed"].dropna().unique())))},
        "pictures": {name: embed(figure) for name, figure in draw_pictures(found).items()},
        "about": read_about(folder / found.runs["name"].iloc[0]),
    }


def attempt(make: Callable[[], Any]) -> Any:
    """A part of a page, or a text that says why it is missing."""
    try:
        return make()
    except Exception as error:
        return one_line(error)


def embed(figure: "Figure") -> list[str]:
    """A picture as an address that holds all of it."""
    from gpt.analysis.plots import save

    return [f"data:image/svg+xml;base64,{b64encode(save(figure, 'svg')).decode()}"]


def read_samples(folder: Path, losses: dict[int, float]) -> list[tuple[str, str]]:
    """What the model wrote after each validation, with a title. Of many texts, some, the first and the last included."""
    from gpt.checkpoint import read

    last = next(folder.glob("checkpoints/last.*"), None)
    history = read(last)["callbacks"].get("samples", {}).get("history", []) if last else []
    if not history:
        return [("the last sample", (folder / "sample.txt").read_text(encoding="utf-8"))]
    places = sorted({round(number * (len(history) - 1) / (MOST_SAMPLES - 1)) for number in range(MOST_SAMPLES)})
    titles = {step: f", val loss {loss:.4f}" for step, loss in losses.items()}
    return [(f"step {step:,}{titles.get(step, '')}", text) for step, text in (history[place] for place in places)]


def draw_layers(folder: Path) -> list[str]:
    """The attention of each layer of the best model, on a short text that its tokenizer knows."""
    import torch

    from gpt.analysis.plots import draw_attention
    from gpt.checkpoint import find, load
    from gpt.model import attention_weights

    model, tokenizer, _ = load(find(str(folder)))
    known = tokenizer.drop_unknown(TEXT)
    text = known if len(known) > len(TEXT) // 2 else tokenizer.drop_unknown("abcdefghijklmnop") or tokenizer.default_prompt
    ids = tokenizer.encode(text)[None, : min(MOST_TOKENS, model.config.context_length)]
    tokens = [printable(tokenizer.decode(ids[:, n])) for n in range(ids.size(1))]
    with torch.no_grad():
        weights = attention_weights(model, ids)[:MOST_LAYERS, 0, :MOST_HEADS].float()
    return [embed(draw_attention(layer, tokens, ""))[0] for layer in weights]
