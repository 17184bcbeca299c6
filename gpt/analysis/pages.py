"""A page about a run or a sweep that any browser opens: one file, which loads nothing from anywhere."""

from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gpt.analysis import compare, plots, runs
from gpt.checkpoint import find, load, read
from gpt.drawing import draw_attention
from gpt.errors import UserError, one_line, printable
from gpt.files import write_text
from gpt.model import attention_weights
from gpt.run import Result

TEXT = "ROMEO:\nO, speak again, bright angel"  # what attention is shown on, if the tokenizer knows it
MOST_TOKENS, MOST_LAYERS, MOST_HEADS, MOST_SAMPLES = 24, 12, 16, 12


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html about the run that it is, or else about the runs in it, and return its path.

    Raises UserError if no run has finished.
    """
    is_run = (folder / "config.yaml").is_file()
    values = describe_run(folder) if is_run else describe_sweep(folder)
    page = runs.fill(
        "run.html" if is_run else "sweep.html", name=folder.resolve().name, show=runs.show, **values
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def describe_run(folder: Path) -> dict[str, Any]:
    """What the page of a run shows. A part for which the folder has nothing is a text that says so."""
    run = runs.read_run(folder)
    if run["problem"]:
        raise UserError(f"folder = {folder}: {run['problem']}; give a run that has finished")
    is_char = run.get("data.tokenizer", "char") == "char"
    unit = "example" if "task.name" in run else "character" if is_char else "token"
    return {
        "run": run,
        "result": Result.read(folder / "result.json"),
        "about": runs.read_about(folder),
        "curves": attempt(lambda: embed(plots.draw_run(folder / "metrics.csv", unit))),
        "samples": attempt(lambda: read_samples(folder, dict(run["curve"]))),
        "attention": attempt(lambda: draw_layers(folder)),
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
    }


def describe_sweep(folder: Path) -> dict[str, Any]:
    """What the page of many runs shows. Raises UserError if there is nothing to compare."""
    found = compare.compare_runs(folder)
    columns = [name for name in compare.choose_columns(found) if name != "run"]
    points, settings = plots.locate(found, "steps")
    return {
        "found": found,
        "varied": {name: points[name].unique() for name in settings}
        | {"seed": found.runs["seed"].dropna().unique()},
        "cells": compare.render(found.table, columns),
        "pages": {name: (folder / name / "report.html").is_file() for name in found.runs["name"]},
        "pictures": {name: embed(figure) for name, figure in plots.draw_pictures(found).items()},
        "about": runs.read_about(folder / found.runs["name"].iloc[0]),
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


def read_samples(folder: Path, losses: dict[int, float]) -> list[tuple[str, str]]:
    """Titles, and what the model wrote after validations. Of many, some, the first and last included."""
    last = next(folder.glob("checkpoints/last.*"), None)
    history = read(last)["callbacks"].get("samples", {}).get("history", []) if last else []
    if not history:
        return [("the last sample", (folder / "sample.txt").read_text(encoding="utf-8"))]
    stride = max(1, (len(history) - 1) / (MOST_SAMPLES - 1))
    shown = [history[round(number * stride)] for number in range(min(MOST_SAMPLES, len(history)))]
    titles = {step: f", val loss {loss:.4f}" for step, loss in losses.items()}
    return [(f"step {step:,}{titles.get(step, '')}", text) for step, text in shown]


def draw_layers(folder: Path) -> list[str]:
    """The attention of each layer of the best model, on a short text that its tokenizer knows."""
    model, tokenizer, _ = load(find(str(folder)))
    known = tokenizer.drop_unknown(TEXT)
    if len(known) <= len(TEXT) // 2:  # it may know another alphabet
        known = tokenizer.drop_unknown("abcdefghijklmnop") or tokenizer.default_prompt
    ids = tokenizer.encode(known)[None, : min(MOST_TOKENS, model.config.context_length)]
    tokens = [printable(tokenizer.decode(ids[:, n])) for n in range(ids.size(1))]
    weights = attention_weights(model, ids)[:MOST_LAYERS, 0, :MOST_HEADS].detach().float()
    return [embed(draw_attention(layer, tokens, "")) for layer in weights]
