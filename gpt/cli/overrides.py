"""Hydra's overrides (`key=value`): composing a configuration from them, quoting them, and explaining what is wrong with them."""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gpt.errors import UserError, did_you_mean, shorten

CONF = Path(__file__).parents[2] / "conf"
REQUIRED_GROUPS = ("model", "data", "optimizer", "scheduler", "trainer")


@dataclass(frozen=True)
class Composition:
    """What Hydra makes of a command line: plain values, with every interpolation resolved."""

    values: dict[str, Any]
    folder: Path  # of the run
    is_sweep: bool


def compose(overrides: Sequence[str], config_name: str = "train") -> Composition:
    """Compose one of the top configurations of `conf/` with `overrides`, without making a folder.

    Raises UserError for overrides that do not fit.
    """
    with explained(overrides, config_name), initialized():
        cfg = hydra.compose(config_name, list(overrides), return_hydra_config=True)
        return read_composition(cfg)


def read_composition(cfg: DictConfig) -> Composition:
    """The parts of a configuration that was composed with Hydra's own."""
    HydraConfig.instance().set_config(cfg)  # for interpolations such as ${hydra:runtime.choices.model}
    try:
        folder = str(cfg.hydra.run.dir)
        is_sweep = cfg.hydra.mode == RunMode.MULTIRUN
        values = {str(key): plain(cfg, str(key)) for key in cfg if key != "hydra"}
    finally:
        HydraConfig.instance().cfg = None
    return Composition(values, Path(folder), is_sweep)


def plain(cfg: DictConfig, key: str) -> Any:
    """One of the top settings as plain values. Raises UserError if it holds an interpolation that cannot be resolved."""
    value = cfg[key]
    return (
        OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        if OmegaConf.is_config(value)
        else value
    )


@contextmanager
def initialized() -> Iterator[None]:
    """Hydra, with `conf/` as its configuration, for the time of the block."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


@contextmanager
def explained(overrides: Sequence[str], config_name: str = "train") -> Iterator[None]:
    """Turn whatever Hydra raises about `overrides`, which are many kinds of exception, into UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise explain(error, overrides, config_name) from None


def explain(error: Exception, overrides: Sequence[str], config_name: str) -> UserError:
    """The one line for what Hydra complains about: the setting or file that was probably meant, or else Hydra's own words."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as parse_error:
        parsed, error = [], parse_error
    settings = known_settings(config_name) if parsed else []
    for override in parsed:
        key, value = override.key_or_group, shorten(str(override.input_line).partition("=")[2].strip("'\""))
        options = sorted(path.stem for path in (CONF / key).glob("*.yaml"))
        if override.is_delete() and key in REQUIRED_GROUPS:
            return UserError(f"{key} = (missing): a run needs this group; choose a file of conf/{key}/")
        if options and not (override.is_delete() or override.is_sweep_override() or value in options):
            return UserError(
                f"{key} = {value}: no such file in conf/{key}/; choose one of {', '.join(options)}"
            )
        if key.partition(".")[0] in ("task", "finetune") and config_name == "train":
            return UserError(f"{key} = {value}: a setting of fine-tuning; start scripts/finetune.py")
        if not (override.is_delete() or override.is_add() or override.is_hydra_override() or key in settings):
            return UserError(f"{key} = {value}: no such setting; {did_you_mean(key, settings)}")
    several = [override.input_line for override in parsed if override.is_sweep_override()]
    if several and not {"-m", "--multirun"} & set(sys.argv):
        return UserError(f"{several[0]} = (several values): that is a sweep; add -m")
    return UserError(
        f"override = {shorten(' '.join(overrides))}: {shorten(error, 200)}; see python scripts/train.py --help"
    )


def known_settings(config_name: str = "train") -> list[str]:
    """The names that can be overridden: groups, and settings as a top configuration has them."""
    with initialized():
        config = OmegaConf.to_container(hydra.compose(config_name))
    groups = {str(path.parent.relative_to(CONF)) for path in CONF.glob("*/**/*.yaml")}
    if config_name == "train":
        groups -= {"task"}
    return sorted(groups | set(flatten_keys(config)))


def flatten_keys(config: Any) -> Iterator[str]:
    """The dotted names of all values in nested dictionaries, and of the dictionaries themselves."""
    for key, value in config.items() if isinstance(config, Mapping) else ():
        yield str(key)
        yield from (f"{key}.{inner}" for inner in flatten_keys(value))


def is_sweep(overrides: Sequence[str]) -> bool:
    """Whether one of the overrides has several values, so that it needs -m or an experiment that is a sweep."""
    try:
        return any(
            override.is_sweep_override()
            for override in OverridesParser.create().parse_overrides(list(overrides))
        )
    except HydraException:
        return False  # it is explained when the overrides are composed


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """The values that were given on a command line, by key. A key that was deleted has None."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.key_or_group: None if override.is_delete() else override.value() for override in parsed}


def asked_of_model(overrides: Mapping[str, Any]) -> set[str]:
    """The fields of the model that overrides ask for, one by one or by the choice of a file of conf/."""
    asked = {key.removeprefix("model.") for key in overrides if key.startswith("model.")}
    for group in ("model", "model/arch", "ablation", "experiment"):
        if (path := CONF / group / f"{overrides.get(group)}.yaml").is_file():
            values = OmegaConf.to_container(OmegaConf.load(path))
            chosen = values.get("model") if group == "experiment" and isinstance(values, dict) else values
            asked |= set(map(str, chosen)) if isinstance(chosen, dict) else set()
    return asked


def quote_override(key: str, value: str) -> str:
    """An override as Hydra reads it, whatever is in the value."""
    if re.fullmatch(r"[A-Za-z0-9_./-]+", value):
        return f"{key}={value}"
    return f"{key}='" + value.replace("\\", "\\\\").replace("'", r"\'") + "'"


def quote_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments with values quoted that Hydra's grammar does not know, such as `name=日本` and `resume=outputs/a=1,b=2`."""
    return [quote_argument(argument) for argument in arguments]


def quote_argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    is_folder = key in ("resume", "hydra.run.dir") and value[:1] not in (
        "'",
        '"',
    )  # its name may have = and , in it
    if key == "init" and not re.search(
        r"""['"\\]""", value
    ):  # of several, each is a folder, and none has a comma
        several = [value] if Path(value).exists() else value.split(",")
        return "init=" + ",".join(quote_override(key, place).partition("=")[2] for place in several)
    if is_folder or (equals and not argument.isascii() and not re.search(r"""['"\\\[\]{}(),$]""", value)):
        return quote_override(key, value)
    return argument  # Hydra's own syntax is left alone
