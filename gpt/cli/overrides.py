"""What was typed: as values, as names of folders that say what is in them, and what is wrong with it."""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from gpt.config import setting_names, short_names
from gpt.errors import UserError, did_you_mean, shorten

CONF = Path(__file__).parents[2] / "conf"  # in the repository
if not CONF.is_dir():
    CONF = Path(__file__).parents[1] / "conf"  # in an installed copy
LONGEST = 80  # bytes of a single run's name
# What is no part of a name: where things are, what only watches, on what and how often a run does its work
UNNAMED = re.compile(
    r"resume|name|hydra\..*|logger.*|data\.(path|val_path|folder)|callbacks\.(?!ema|early_stopping).*"
    r"|trainer\.(accelerator|compile|detect_anomaly|devices|log_every_n_steps|max_time|num_nodes|precision"
    r"|profiler|strategy|val_check_interval)"
)
FILES = ("data.path", "data.val_path", "data.folder", "task.path", "init")
PATHS = (*FILES, "resume", "hydra.run.dir", "hydra.sweep.dir", "name")
# Quotes, lists, functions, escapes and interpolations of Hydra's grammar
GRAMMAR = re.compile(r"""(^|,)['"\[{]|^(choice|glob|shuffle|sort|tag)\(|\\|[$]\{""")


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values that were typed, by key: {"model": "tiny", "seed": 2}. A key that was deleted has None."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {one.key_or_group: None if one.is_delete() else one.value() for one in parsed}


def quote(value: str) -> str:
    """A value as Hydra reads it, whatever is in it."""
    plain = re.fullmatch(r"[A-Za-z0-9_./-]+", value)
    return value if plain else "'" + value.replace("\\", "\\\\").replace("'", r"\'") + "'"


def quote_paths(arguments: Sequence[str]) -> list[str]:
    """The arguments with each path quoted as Hydra's grammar needs it: resume=~/a=1 names the folder "a=1".

    What exists is one path, whatever is in its name. Otherwise commas separate several, and what only Hydra's
    grammar can mean stays as it is.
    """
    quoted = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        exists = os.path.exists(os.path.expanduser(value))
        if key in PATHS and value and (exists or not GRAMMAR.search(value)):
            places = [value] if exists or key == "name" else value.split(",")
            argument = f"{key}=" + ",".join(quote(os.path.expanduser(place)) for place in places)
        quoted.append(argument)
    return quoted


def name_run(start: str, name: str, overrides: Mapping[str, Any]) -> str:
    """The name of a run's folder: `start`, and the overrides that decide the result, as many as fit.

    2026-11-28_12-00-00_tiny_arch-gpt1_seed-2: a choice that the run is named after, model=tiny here, is not
    repeated.
    """
    named = {key: value for key, value in overrides.items() if not UNNAMED.fullmatch(key)}
    chosen = {key: value for key, value in named.items() if value not in (None, name)}
    while chosen and len(f"{start}_{name_settings(chosen)}".encode()) > LONGEST:
        chosen.popitem()  # the last one
    return f"{start}_{name_settings(chosen)}" if chosen else start


def name_settings(values: Mapping[str, Any]) -> str:
    """Short names and values without signs of a shell or of Hydra: n_head-2 for {"model.n_head": 2}."""
    names = short_names(list(values))
    return "_".join(f"{name}-{legible(value)}" for name, value in zip(names, values.values(), strict=True))


def legible(value: Any) -> str:
    """A value in letters, digits and a few signs. Of a path, that is its end, which tells most."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "-".join(map(legible, value))
    if not isinstance(value, str):
        value = f"{value:g}" if isinstance(value, float) else json.dumps(value)
    return re.sub(r"[^\w.+-]+", "-", Path(value).name or value).strip("-")


@contextlib.contextmanager
def hydra_errors(overrides: Sequence[str] | None = None) -> Iterator[None]:
    """Raise a UserError in place of what Hydra says about `overrides`, by default those that were typed."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        is_theirs = isinstance(error, (HydraException, OmegaConfBaseException))
        if not is_theirs and "Config group override must be" not in str(error):  # of callbacks=null
            raise
        words = sys.argv[1:] if overrides is None else overrides
        words = [getattr(error, "override", None) or word for word in words if not word.startswith("-")]
        raise UserError(explain(f"{error}\n{error.__cause__ or ''}", list(dict.fromkeys(words)))) from None


def explain(reason: str, words: Sequence[str]) -> str:
    """The one line for what Hydra or OmegaConf complains about."""
    if found := re.search(r"Could not override '([^'@]+)", reason):
        key = found[1]
        value = next((word.partition("=")[2] for word in words if word.lstrip("+~").startswith(key)), "")
        if key.partition(".")[0] in ("task", "finetune"):
            return f"{key} = {shorten(value)}: a setting of fine-tuning; start scripts/finetune.py"
        groups = {str(path.parent.relative_to(CONF)) for path in CONF.glob("*/**/*.yaml")}
        advice = did_you_mean(key, {*setting_names(), *groups, "resume"})
        if key.startswith("trainer."):
            advice += f" (an argument of Lightning's Trainer is added by +{key})"
        return f"{key} = {shorten(value)}: no such setting; {advice}"
    if found := re.search(r"Could not find '(.+)/(.+)'\s+Available options in .*:\n(\s[^:]*)\n", reason):
        group, choice, others = found[1], found[2], ", ".join(found[3].split())
        return f"{group} = {choice}: no such file in conf/{group}/; choose one of {others}"
    if "Config group override must be" in reason:
        for key, value in parse_overrides(words).items():
            if (CONF / key).is_dir() and not isinstance(value, (str, list)):
                given = "null" if value is None else shorten(value)
                return f"{key} = {given}: no file of conf/{key}/; ~{key} leaves the group out"
    if "Ambiguous value" in reason:
        several = next((word for word in words if "," in word), words[0])
        return f"{several} = (several values): that is a sweep; add -m"
    given = shorten(" ".join(words))
    return f"override = {given}: {shorten(reason, 200)}; see python scripts/train.py --help"
