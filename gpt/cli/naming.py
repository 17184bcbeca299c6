"""Names of folders that say what is in them, made of the settings that were typed."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.cli.overrides import CONF

if TYPE_CHECKING:
    from gpt.config import RunConfig

LONGEST = 80  # bytes of a single run's name
UNNAMED = {
    "data.path",
    "data.folder",
}  # where the text is; and of the trainer, what only watches, and on what it runs
UNNAMED |= {
    f"trainer.{name}"
    for name in ("val_check_interval", "log_every_n_steps", "max_time", "detect_anomaly", "profiler")
}
UNNAMED |= {
    f"trainer.{name}" for name in ("accelerator", "devices", "num_nodes", "strategy", "precision", "compile")
}


def short_names(keys: Sequence[str]) -> list[str]:
    """n_head for model.n_head, unless another key ends so too."""
    last = [key.replace("/", ".").rpartition(".")[2] for key in keys]
    return [
        name if last.count(name) == 1 else key.replace("/", ".") for name, key in zip(last, keys, strict=True)
    ]


def name_run(start: str, overrides: Mapping[str, Any], config: "RunConfig") -> str:
    """The name of a run's folder: `start`, and the overrides that decide the result, as many as fit: arch=gpt1,seed=2.

    A choice that the run is named after, such as model=tiny, is not repeated.
    """
    named = config.flat().keys() - UNNAMED
    chosen = {
        key: value
        for key, value in overrides.items()
        if value is not None
        and (key in named or ((CONF / key).is_dir() and key != "logger" and value != config.name))
    }
    if "init" in chosen:
        chosen["init"] = name_place(chosen["init"])
    while chosen and len(f"{start}_{name_settings(chosen)}".encode()) > LONGEST:
        chosen.popitem()  # the last one
    return f"{start}_{name_settings(chosen)}" if chosen else start


def name_settings(values: Mapping[str, Any]) -> str:
    """Short names and values, without anything that a file system might refuse: {"model.n_head": 2} becomes n_head=2."""
    return ",".join(
        f"{name}={legible(value)}"
        for name, value in zip(short_names(list(values)), values.values(), strict=True)
    )


def name_place(value: Any) -> str:
    """A path by its end, which tells most, and any other value as it is: RUN for outputs/RUN."""
    return legible(Path(value).name if isinstance(value, str) else value)


def legible(value: Any) -> str:
    """A value with nothing but letters, digits and a few signs, which every file system takes."""
    if isinstance(value, list):
        return "-".join(map(legible, value))
    text = (
        f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    )
    return re.sub(r"[^\w.+-]+", "-", text)
