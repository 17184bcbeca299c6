"""What run folders say about their runs, read as data: nothing in them is executed, and a damaged one is only reported."""

import csv
import io
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from gpt.cli.naming import short_names
from gpt.errors import LARGEST_INT, UserError, build, one_line, printable, shorten
from gpt.files import read_json, read_text
from gpt.runs.result import LARGEST, Result, TaskResult


@dataclass(frozen=True)
class RunRecord:
    """What a run folder says about its run."""

    name: str  # its folder, relative to the one that is compared
    settings: Mapping[str, Any]  # those that decide the result: {"model.n_layer": 2, ...}
    result: Result | None  # losses are in nats per character; None if the run did not finish
    curve: list[tuple[int, float]]  # steps taken, and the validation loss then in nats per character
    problem: str = "not finished"  # why there is no result
    overrides: Mapping[str, Any] = field(
        default_factory=dict
    )  # what was typed; empty for runs of earlier versions

    def tokens(self, steps: int) -> float:
        """How many tokens the run reads in so many steps, or nan if its configuration does not tell."""
        keys = ("data.batch_size", "model.context_length", "trainer.accumulate_grad_batches")
        values = [self.settings.get(key) for key in keys]
        sizes = [value for value in values if isinstance(value, int) and 0 < value <= LARGEST_INT]
        return steps * math.prod(sizes) if len(sizes) == len(keys) else math.nan

    def flops(self, steps: int) -> float:
        """How many floating-point operations the training takes for so many steps, or nan if the settings do not tell."""
        from gpt.config import ModelConfig

        values = {
            key.removeprefix("model."): value
            for key, value in self.settings.items()
            if key.startswith("model.")
        }
        try:
            return self.tokens(steps) * flops_per_token(build(ModelConfig, values, "model"))
        except ValueError:
            return math.nan

    def seconds(self, steps: int) -> float:
        """How long the run took for so many steps. Validation is spread evenly over them."""
        assert self.result is not None
        return self.result.seconds * steps / max(self.result.step, 1)


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in nothing but their seed."""

    settings: Mapping[str, Any]  # what varies between groups, by short names: {"arch": "gpt1", "n_layer": 2}
    runs: list[RunRecord]

    def values(self, key: str) -> list[float]:
        """What the results of the runs have under `key`, without those that have nothing there."""
        found = [getattr(run.result, key) for run in self.runs if run.result is not None]
        return [value for value in found if value is not None]

    def average(self, key: str) -> float:
        values = self.values(key)
        return mean(values) if values else math.nan

    @property
    def losses(self) -> list[float]:
        """The lowest validation loss of each run, in nats per character."""
        return self.values("best_val_loss")

    @property
    def loss(self) -> float:
        return mean(self.losses)

    @property
    def spread(self) -> float | None:
        """The standard deviation of the loss over seeds. None for a single run."""
        return stdev(self.losses) if len(self.runs) > 1 else None


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
    return RunRecord(
        name, settings, numbers, [(step, scale * loss) for step, loss in curve], overrides=overrides
    )


def read_overrides(path: Path) -> dict[str, Any]:
    """What was typed for a run, from its run.json. Raises UserError if it is damaged."""
    overrides = read_json(path).get("overrides", {})
    if not isinstance(overrides, dict):
        raise UserError(f"file = {path}: overrides are no dictionary; restore it, or remove it")
    return overrides


def describe(value: Any) -> str:
    """The text by which two values of a setting are told apart."""
    return shorten(value, 1000)


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


def group_runs(runs: list[RunRecord]) -> list[Group]:
    """Finished runs gathered over seeds, lowest mean loss first, each group with what varies between groups.

    Runs are of one group if all of their settings but the seed agree, whatever was typed to get them.
    """
    finished = [run for run in runs if run.result and run.result.best_val_loss is not None]
    keys = [key for key in dict.fromkeys(key for run in finished for key in run.settings) if key != "seed"]
    varying = [key for key in keys if len({describe(run.settings.get(key)) for run in finished}) > 1]
    gathered: dict[str, list[RunRecord]] = {}
    for run in finished:
        gathered.setdefault(str([describe(run.settings.get(key)) for key in varying]), []).append(run)
    examples = [
        max(same, key=lambda run: sum("." not in key for key in run.overrides)) for same in gathered.values()
    ]
    shown = choose_shown(examples, varying)
    names = short_names(shown)
    groups = [
        Group({name: value_of(run, key) for name, key in zip(names, shown, strict=True)}, same)
        for run, same in zip(examples, gathered.values(), strict=True)
    ]
    return sorted(groups, key=lambda group: group.loss)


def choose_shown(runs: Sequence[RunRecord], varying: Sequence[str]) -> list[str]:
    """The choices and settings by which runs are told apart, of which no two have the same values of `varying`.

    These are what was typed and varies, in the order in which it was typed. A choice of a group, such as model/arch=gpt1,
    stands for what it sets. Any other setting is left out if it is a function of these. It is shown if two runs differ in
    it although the same was typed for both, as it is for runs that do not say what was typed.
    """
    typed = list(dict.fromkeys(key for run in runs for key in run.overrides))
    settings = [key for key in varying if key in typed]
    others = [key for key in varying if key not in typed]
    choices = [key for key in typed if any(may_set(key, other) for other in others) and differ(runs, [key])]
    shown = [key for key in typed if key in settings or key in choices]
    return shown + [
        key
        for key in others
        if differ(runs, [*shown, key]) > differ(runs, shown) or differ_untyped(runs, key)
    ]


def may_set(choice: str, setting: str) -> bool:
    """Whether the choice of a group may set a setting: model, model/arch and ablation may all set model.n_layer."""
    from gpt.config import GROUPS

    if "." in choice or choice in ("logger", "name", "resume", "seed"):
        return False
    group = choice.partition("/")[0]
    return group == setting.partition(".")[0] or group not in (*GROUPS, "callbacks", "hydra")


def differ(runs: Sequence[RunRecord], keys: Sequence[str]) -> int:
    """How many combinations of values the runs have beyond the first."""
    return len({str([describe(value_of(run, key)) for key in keys]) for run in runs}) - 1


def differ_untyped(runs: Sequence[RunRecord], key: str) -> bool:
    """Whether runs differ in a setting that do not say what was typed, so that no choice can explain it."""
    return differ([run for run in runs if not run.overrides], [key]) > 0


def value_of(run: RunRecord, key: str) -> Any:
    """A run's value of a setting or, for the choice of a group, its name: "-" if none was typed."""
    return run.settings.get(key) if "." in key else describe(run.overrides.get(key, "-"))


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
    return printable(
        "python " + shlex.join(str(word) for word in words if not str(word).startswith(without or "\0"))
    )
