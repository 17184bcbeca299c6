"""What run folders say about their runs, read as data: nothing in them is executed, and a damaged one is only reported."""

import csv
import io
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt.files import read_json, read_text
from gpt.runs.result import LARGEST, Result, TaskResult
from gpt.settings import LARGEST_INT, UserError, one_line, printable, shorten


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says about its run."""

    name: str  # its folder, relative to the one that is compared
    settings: Mapping[str, Any]  # those that decide the result: {"model.n_layer": 2, ...}
    result: Result | None  # losses are in nats per character; None if the run did not finish
    curve: list[tuple[int, float]]  # steps taken, and the validation loss then in nats per character
    problem: str = "not finished"  # why there is no result
    overrides: Mapping[str, Any] = field(default_factory=dict)  # what was typed; empty for runs of earlier versions


def read_runs(folder: Path) -> list[RunRecord]:
    """All runs under a folder, in the order of their names. Raises UserError if none has finished."""
    folders = {path.parent for name in ("config.yaml", "error.txt") for path in folder.glob(f"**/{name}")}
    runs = [read_run(path, one_line(path.relative_to(folder))) for path in sorted(folders)]
    if not any(run.result for run in runs):
        raise UserError(f"folder = {folder}: no finished run in it; give a folder under outputs/")
    return runs


def read_run(folder: Path, name: str) -> RunRecord:
    """A run's record. One that is damaged has no result, and says why."""
    from gpt.config import flatten, read_config_file

    files = ("config.yaml", "run.json", "result.json", "metrics.csv", "error.txt")
    config, origin, result, metrics, error = (folder / file for file in files)
    try:
        if error.exists() and not result.exists():
            return RunRecord(name, {}, None, [], shorten(read_text(error).partition("\n")[0], 500))
        settings = flatten(read_config_file(config))
        overrides = read_overrides(origin) if origin.exists() else {}
        curve = read_curve(metrics) if metrics.exists() else []
        if not result.exists():
            return RunRecord(name, settings, None, curve, overrides=overrides)
        numbers = Result.read(result)
    except UserError as reason:
        return RunRecord(name, {}, None, [], f"damaged: {one_line(reason).replace(f'{folder}/', '')}")
    if settings.get("data.tokenizer", "char") == "char" or isinstance(numbers, TaskResult):
        return RunRecord(name, settings, numbers, curve, overrides=overrides)
    # A loss per token cannot be compared with another tokenizer's. The same validation text has as many characters as ever
    scale = numbers.final_bits_per_char * math.log(2) / numbers.final_val_loss
    best = None if numbers.best_val_loss is None else scale * numbers.best_val_loss
    numbers = replace(numbers, best_val_loss=best, final_val_loss=scale * numbers.final_val_loss)
    return RunRecord(name, settings, numbers, [(step, scale * loss) for step, loss in curve], overrides=overrides)


def read_overrides(path: Path) -> dict[str, Any]:
    """What was typed for a run, from its run.json. Raises UserError if it is damaged."""
    overrides = read_json(path).get("overrides", {})
    if not isinstance(overrides, dict):
        raise UserError(f"file = {path}: overrides are no dictionary; restore it, or remove it")
    return overrides


def read_metric(path: Path, name: str) -> list[tuple[int, float]]:
    """Steps taken and values from a metrics.csv, whose steps count from 0. Raises UserError if it is missing or damaged."""
    try:
        rows = csv.DictReader(io.StringIO(read_text(path), newline=""))
        points = [(int(row["step"]) + 1, float(row[name])) for row in rows if row.get(name)]
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"file = {path}: damaged; restore it, or remove it") from None
    if not all(0 < step <= LARGEST_INT for step, _ in points):
        raise UserError(f"file = {path}: damaged; restore it, or remove it")
    return points


def read_curve(path: Path) -> list[tuple[int, float]]:
    """Steps taken and validation losses. Raises UserError as `read_metric` does, and for a loss that none can be."""
    curve = read_metric(path, "val/loss")
    if not all(0 <= loss <= LARGEST for _, loss in curve):  # false for nan
        raise UserError(f"file = {path}: damaged; restore it, or remove it")
    return curve


def read_about(folder: Path) -> dict[str, Any]:
    """What a run.json says, or nothing if it is missing or damaged."""
    try:
        return read_json(folder / "run.json")
    except UserError:
        return {}


def typed_command(about: Mapping[str, Any], without: tuple[str, ...] = ()) -> str | None:
    """What was typed to train, by a run.json, quoted for the shell, without words that begin in certain ways.

    None if that was not recorded: a stranger's folder must not offer another command to be pasted.
    """
    words = about.get("command")
    if not (isinstance(words, list) and words and re.fullmatch(r"[^-].*\.py", str(words[0]))):
        return None
    return printable("python " + shlex.join(str(word) for word in words if not str(word).startswith(without or "\0")))
