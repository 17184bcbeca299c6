"""What was typed, as values, and as names of folders that say what is in them."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

CONF = Path(__file__).parents[2] / "conf"  # in the repository
if not CONF.is_dir():
    CONF = Path(__file__).parents[1] / "conf"  # in an installed copy
LONGEST = 80  # bytes of a single run's name
# where the text is; and of the trainer, what only watches, and on what it runs
UNNAMED = {"data.path", "data.folder"}
UNNAMED |= {
    f"trainer.{name}" for name in ("val_check_interval", "log_every_n_steps", "max_time", "detect_anomaly")
}
UNNAMED |= {
    f"trainer.{name}" for name in ("profiler", "accelerator", "devices", "num_nodes", "strategy", "precision")
}
UNNAMED |= {"trainer.compile"}
# what decides a result
DECISIVE = ("model.", "data.", "optimizer.", "scheduler.", "trainer.", "task.", "finetune.")
DECISIVE += ("callbacks.ema.", "callbacks.early_stopping.")
PATHS = (
    "data.path",
    "data.folder",
    "task.path",
    "init",
    "resume",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "name",
)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values that were typed, by key: {"model": "tiny", "seed": 2}. A key that was deleted has None."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {one.key_or_group: None if one.is_delete() else one.value() for one in parsed}


def quote_override(key: str, value: str) -> str:
    """An override as Hydra reads it, whatever is in the value."""
    if re.fullmatch(r"[A-Za-z0-9_./-]+", value):
        return f"{key}={value}"
    return f"{key}='" + value.replace("\\", "\\\\").replace("'", r"\'") + "'"


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments with each path quoted that Hydra's grammar would not take, such as resume=outputs/a=1.

    A list of paths is one only if it is no path itself. What is quoted already, or an expression, stays as it
    is.
    """
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in PATHS and not re.search(r"""^$|['"\\]|[$]\{|^[\[{]""", value):
            places = [value] if key == "name" or Path(value).exists() else value.split(",")
            argument = f"{key}=" + ",".join(quote_override("", place)[1:] for place in places)
        quoted.append(argument)
    return quoted


def short_names(keys: Sequence[str]) -> list[str]:
    """n_head for model.n_head, unless another key ends so too."""
    last = [key.replace("/", ".").rpartition(".")[2] for key in keys]
    return [
        short if last.count(short) == 1 else key.replace("/", ".")
        for short, key in zip(last, keys, strict=True)
    ]


def name_run(start: str, name: str, overrides: Mapping[str, Any]) -> str:
    """The name of a run's folder: `start`, and the overrides that decide the result, as many as fit.

    2026-11-28_12-00-00_tiny_arch-gpt1_seed-2: a choice that the run is named after, model=tiny here, is not
    repeated.
    """
    chosen = {}
    for key, value in overrides.items():
        is_choice = (CONF / key).is_dir() and key != "logger" and value != name
        is_setting = key in ("seed", "init") or key.startswith(DECISIVE)
        if value is not None and key not in UNNAMED and (is_choice or is_setting):
            chosen[key] = value
    while chosen and len(f"{start}_{name_settings(chosen)}".encode()) > LONGEST:
        chosen.popitem()  # the last one
    return f"{start}_{name_settings(chosen)}" if chosen else start


def name_settings(values: Mapping[str, Any]) -> str:
    """Short names and values, without anything that a shell or Hydra reads: {"model.n_head": 2} becomes
    n_head-2.
    """
    names = short_names(list(values))
    return "_".join(f"{name}-{legible(value)}" for name, value in zip(names, values.values(), strict=True))


def legible(value: Any) -> str:
    """A value with nothing but letters, digits and a few signs. Of a path, that is its end, which tells most."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "-".join(map(legible, value))
    text = (
        f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    )
    return re.sub(r"[^\w.+-]+", "-", Path(text).name or text).strip("-")
