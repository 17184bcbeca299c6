"""A page about a run or a sweep that any browser opens: one file, which loads nothing from anywhere."""

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gpt.analysis import compare, plots, runs
from gpt.checkpoint import find, load, read
from gpt.drawing import draw_attention
from gpt.errors import UserError, one_line, printable
from gpt.files import write_text
from gpt.model import attention_weights
from gpt.run import Result, Run
from gpt.tokenizer import tokenizer_class

TEXT = "ROMEO:\nO, speak again, bright angel"  # what attention is shown on, if the tokenizer knows it
MOST_TOKENS, MOST_LAYERS, MOST_HEADS, MOST_SAMPLES = 24, 12, 16, 12


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html about the run that it is, or else about the runs in it, and return its path.

    Raises UserError if no run has finished.
    """
    is_run = (folder / "config.yaml").is_file()
    template, values = (
        ("run.html", describe_run(folder)) if is_run else ("sweep.html", describe_sweep(folder))
    )
    page = runs.JINJA.get_template(template).render(name=folder.resolve().name, **values)
    write_text(folder / "report.html", page)
    return folder / "report.html"


def describe_run(folder: Path) -> dict[str, Any]:
    """What the page of a run shows. A part for which the folder has nothing is a text that says so."""
    run = runs.read_run(folder)
    if run["problem"]:
        raise UserError(f"folder = {folder}: {run['problem']}; give a run that has finished")
    unit = "example" if "task.name" in run else tokenizer_class(run.get("data.tokenizer", "char")).loss_unit
    return {
        "run": run,
        "result": Result.read(folder / "result.json"),
        "about": Run(folder).origin,
        "curves": attempt(lambda: embed(plots.draw_run(folder / "metrics.csv", unit))),
        "samples": attempt(lambda: read_samples(folder, run["curve"])),
        "attention": attempt(lambda: draw_layers(folder)),
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
    }


def describe_sweep(folder: Path) -> dict[str, Any]:
    """What the page of many runs shows. Raises UserError if there is nothing to compare."""
    found = compare.compare_runs(folder)
    points, settings = plots.locate(found, "steps")
    columns = [name for name in compare.choose_columns(found) if name != "run"]
    varied = {name: points[name].unique() for name in settings}
    return {
        "found": found,
        "varied": varied | {"seed": found.runs["seed"].dropna().unique()},
        "cells": compare.render(found.table)[columns],
        "pages": {name: (folder / name / "report.html").is_file() for name in found.runs["name"]},
        "pictures": {name: embed(figure) for name, figure in plots.draw_pictures(found).items()},
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
    return f"data:image/svg+xml;base64,{b64encode(plots.save(figure, 'svg')).decode()}"


def read_samples(folder: Path, losses: "Series") -> list[tuple[str, str]]:
    """Titles, and what the model wrote after validations. Of many, some, the first and last included."""
    last = Run(folder).last
    history = read(last)["callbacks"].get("samples", {}).get("history", []) if last else []
    if not history:
        return [("the last sample", (folder / "sample.txt").read_text(encoding="utf-8"))]
    shown = np.linspace(0, len(history) - 1, min(MOST_SAMPLES, len(history))).round().astype(int)
    titles = {step: f", val loss {loss:.4f}" for step, loss in losses.items()}
    return [(f"step {step:,}{titles.get(step, '')}", text) for step, text in map(history.__getitem__, shown)]


def draw_layers(folder: Path) -> list[str]:
    """The attention of each layer of the best model, on a short text that its tokenizer knows."""
    model, tokenizer, _ = load(find(str(folder)))
    known = tokenizer.drop_unknown(TEXT)
    if len(known) <= len(TEXT) // 2:  # it may know another alphabet
        known = tokenizer.drop_unknown("abcdefghijklmnop") or tokenizer.default_prompt
    ids = tokenizer.encode(known)[None, : min(MOST_TOKENS, model.config.context_length)]
    tokens = [printable(tokenizer.decode([id])) for id in ids[0].tolist()]
    weights = attention_weights(model, ids)[:MOST_LAYERS, 0, :MOST_HEADS].detach().float()
    return [embed(draw_attention(layer, tokens, "")) for layer in weights]
