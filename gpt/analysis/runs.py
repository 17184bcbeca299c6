"""What run folders say about their runs: a table of pandas with a row for each, and how its values are shown."""

import contextlib
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, select_autoescape
from pandas import DataFrame, Series, json_normalize, read_csv

from gpt.config import ModelConfig
from gpt.errors import UserError, one_line, printable, shorten
from gpt.run import Result, Run, TaskResult

# The settings that decide a result, by how they begin. All other callbacks only watch
DECISIVE = ("init", "seed", "model.", "data.", "optimizer.", "scheduler.", "trainer.", "task.", "finetune.")
DECISIVE += ("callbacks.ema.", "callbacks.early_stopping.")
# Columns with results, and their names in result.json. Losses are in nats per character, of tasks per example
NUMBERS = {"loss": "best_val_loss", "steps": "step", "seconds": "seconds", "parameters": "parameters"}
NUMBERS |= {"chars_per_second": "chars_per_second", "accuracy": "test_accuracy"}
NUMBERS |= {"majority": "majority_accuracy", "naive_bayes": "naive_bayes_accuracy"}


def read_runs(folder: Path) -> DataFrame:
    """What `read_run` says of all runs under a folder, by name. Raises UserError if none has finished."""
    places = {path.parent for name in ("config.yaml", "error.txt") for path in folder.glob(f"**/{name}")}
    rows = [{"name": one_line(place.relative_to(folder))} | read_run(place) for place in sorted(places)]
    if all(row["problem"] for row in rows):
        raise UserError(f"folder = {folder}: no finished run in it; give a folder under outputs/")
    runs = DataFrame(rows, dtype=object)  # of which no integer becomes a float
    return runs.where(runs.notna(), None).astype(dict.fromkeys([*NUMBERS, "tokens", "flops"], float))


def read_run(folder: Path) -> dict[str, Any]:
    """A run's settings under their command-line names, and its results under the names of NUMBERS.

    overrides is what was typed, curve has the validation losses by steps taken, tokens and flops are what the
    training took. problem is None, or says why there is no result: it is damaged, or has not finished.
    """
    row, file = {"problem": "not finished", "overrides": {}, "curve": Series(dtype=float)}, "error.txt"
    try:
        if (folder / file).exists() and not (folder / "result.json").exists():
            return row | {"problem": shorten((folder / file).read_text().partition("\n")[0], 500)}
        file = "config.yaml"
        config = json_normalize(yaml.safe_load((folder / file).read_text(encoding="utf-8")))
        settings = config.to_dict("records")[0].items()
        row |= {key: value for key, value in settings if key.startswith(DECISIVE) and "_target_" not in key}
        file = "run.json"
        row["overrides"] = Run(folder).origin.get("overrides", {})
        file = "metrics.csv"
        row["curve"] = read_metric(folder / file, "val/loss") if (folder / file).exists() else row["curve"]
        file = "result.json"
        return row | read_result(Result.read(folder / file), row) if (folder / file).exists() else row
    except Exception as error:  # of any kind, as damage is; the other runs are compared all the same
        reason = one_line(error).removeprefix(f"file = {folder / file}: ")
        return {"problem": f"damaged: {file}: {shorten(reason, 200)}"}


def read_result(result: Result, row: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a run, with losses per character: other tokenizers have other losses per token."""
    numbers = {"problem": None} | {name: getattr(result, key, None) for name, key in NUMBERS.items()}
    if row.get("data.tokenizer", "char") != "char" and not isinstance(result, TaskResult):
        scale = result.final_bits_per_char * math.log(2) / result.final_val_loss
        best = None if result.best_val_loss is None else scale * result.best_val_loss
        numbers |= {"curve": scale * row["curve"], "loss": best}
    sizes = ("data.batch_size", "model.context_length", "trainer.accumulate_grad_batches")
    tokens, flops = result.step * math.prod(row.get(key) or math.nan for key in sizes), math.nan
    with contextlib.suppress(TypeError, ValueError):  # the settings of another version
        model = {key.removeprefix("model."): row[key] for key in row if key.startswith("model.")}
        flops = tokens * ModelConfig(**model).flops_per_token()
    return numbers | {"tokens": tokens, "flops": flops}


def read_metric(path: Path, name: str) -> Series:
    """A column of a metrics.csv by steps taken (the file counts from 0), empty if nothing has logged it."""
    metrics = read_csv(path)
    return metrics.set_index(metrics["step"] + 1).get(name, Series(dtype=float)).astype(float).dropna()


def show(value: Any) -> str:
    """A value in a table or picture: 2, 0.0003, 1.61M, gpt1; nothing for one that is not known."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        text = one_line(value)
        return text if len(text) <= 24 else f"...{text[-21:]}"  # the end of a path tells most
    if isinstance(value, int) and abs(value) < 100_000:
        return str(value)
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.4g}"


# Values in `templates/` are text for HTML, whatever is in them
JINJA = Environment(
    loader=PackageLoader("gpt.analysis"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
)
JINJA.filters |= {"printable": printable, "shell": shlex.join, "show": show}
