"""What a search varies: a YAML file with a line for each setting, either its choices or a lowest and a highest value."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.cli.overrides import quote_override
from gpt.errors import LARGEST_INT, UserError, shorten

if TYPE_CHECKING:
    import optuna

Space = dict[
    str, dict[str, Any]
]  # {"optimizer.lr": {"low": 1e-4, "high": 0.01, "log": True}, "seed": {"choices": [1, 2]}}
EXAMPLES = "write {choices: [a, b]}, or {low: a, high: b} and maybe log: true"
TRIES = 20  # points of a space that are checked before a search begins


def read_space(path: Path) -> Space:
    """The space in a YAML file. Raises UserError for a line that cannot be searched."""
    from gpt.config import read_config_file

    if not path.is_file():
        raise UserError(f"--space = {path}: no such file; give a YAML file such as conf/tune.yaml")
    try:
        content = read_config_file(path)
    except UserError:
        content = {}
    if not content:
        raise UserError(
            f"--space = {path}: not a YAML file of settings; write lines such as model.n_head: {{choices: [1, 2]}}"
        )
    return {key: check_line(key, line) for key, line in content.items()}


def check_line(key: str, line: Any) -> dict[str, Any]:
    """One line of a space, its numbers converted. Raises UserError if it cannot be searched."""
    if not re.fullmatch(r"[A-Za-z_][\w./]*", key) or re.match(r"(hydra|name|resume)\b", key):
        raise UserError(
            f"{shorten(key)} = {shorten(line)}: not a setting that can be searched; name one such as model.n_head"
        )
    keys = set(line) if isinstance(line, dict) else set()
    if keys == {"choices"}:
        return {"choices": check_choices(key, line["choices"])}
    if {"low", "high"} <= keys <= {"low", "high", "log"}:
        return check_range(key, line)
    raise UserError(f"{key} = {shorten(line)}: no search; {EXAMPLES}")


def check_choices(key: str, choices: Any) -> list[Any]:
    """Raises UserError unless the choices are a list of numbers, texts, true, false or null."""
    is_list = isinstance(choices, list) and 1 <= len(choices) <= 1000
    if not is_list or not all(
        value is None or isinstance(value, (bool, int, float, str)) for value in choices
    ):
        raise UserError(f"{key}.choices = {shorten(choices)}: not a list of values; {EXAMPLES}")
    for value in choices:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            check_number(f"{key}.choices", value)
    return choices


def check_range(key: str, line: Mapping[str, Any]) -> dict[str, Any]:
    """Raises UserError unless the lowest value is below the highest, and above zero if their logarithm is searched."""
    low, high = (check_number(f"{key}.{end}", line[end]) for end in ("low", "high"))
    log = line.get("log", False)
    if not isinstance(log, bool):
        raise UserError(
            f"{key}.log = {shorten(log)}: not true or false; write log: true for rates, or leave it out"
        )
    if not low < high:
        raise UserError(f"{key}.low = {low}: not below high = {high}; {EXAMPLES}")
    if log and low <= 0:
        raise UserError(f"{key}.low = {low}: has no logarithm; set it above 0, or leave log out")
    return {"low": low, "high": high, "log": log}


def check_number(name: str, value: Any) -> int | float:
    """A number that a setting can have. Raises UserError for anything else. YAML reads 3e-3 as a text."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value.lower()):
        value = float(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise UserError(f"{name} = {shorten(value)}: not a number; {EXAMPLES}")
    if not abs(value) <= LARGEST_INT:  # true for nan
        raise UserError(
            f"{name} = {shorten(value)}: no number that a setting can have; set one up to {LARGEST_INT:,}"
        )
    return value


def suggest(trial: "optuna.Trial", space: Space) -> dict[str, Any]:
    """What Optuna tries next: the value of each setting."""
    values: dict[str, Any] = {}
    for key, line in space.items():
        if "choices" in line:
            values[key] = trial.suggest_categorical(key, line["choices"])
        elif is_whole(line):
            values[key] = trial.suggest_int(key, line["low"], line["high"], log=line["log"])
        else:
            values[key] = trial.suggest_float(key, line["low"], line["high"], log=line["log"])
    return values


def describe_space(space: Space) -> dict[str, list[str]]:
    """The values of each setting, for a person."""
    ranges = {key: f"{line['low']} to {line['high']}" for key, line in space.items() if "low" in line}
    return {
        key: [ranges[key]] if key in ranges else [str(value) for value in line["choices"]]
        for key, line in space.items()
    }


def is_whole(line: Mapping[str, Any]) -> bool:
    """Whether a range has whole numbers only."""
    return isinstance(line["low"], int) and isinstance(line["high"], int)


def to_overrides(values: Mapping[str, Any]) -> list[str]:
    """The values as overrides of scripts/train.py."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    return [quote_override(key, text) for key, text in texts.items()]


def check_space(overrides: Sequence[str], space: Space, name: str) -> None:
    """Raises UserError if none of some random points of the space makes a run, with the reason of the first.

    Single combinations that make no model are left to the search, which reports them and goes on.
    """
    import optuna

    from gpt.cli.jobs import compose_run

    study, refusals = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), []
    for _ in range(TRIES):
        try:
            compose_run([*overrides, *to_overrides(suggest(study.ask(), space))], name)
            return
        except UserError as error:
            refusals.append(error)
    raise refusals[0]
