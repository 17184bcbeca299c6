"""Between Hydra and the user: objects from a configuration, and complaints as one line."""

import errno
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gpt.settings import UserError, did_you_mean

SCRIPTS = str(Path(__file__).parent)
CONF = str(Path(__file__).parents[1] / "conf")
TRUSTED = ("gpt.", "lightning.pytorch.")  # what a _target_ in conf/ may name: a configuration can run what it names


def make_all(group: DictConfig | None) -> list[Any]:
    """The objects that a config group lists, none if the group is left out.

    Raises UserError for a _target_ outside TRUSTED, or arguments that it refuses.
    """
    made = []
    for name, node in (group or {}).items():
        if node is None:  # callbacks.samples=null leaves it out
            continue
        if not isinstance(node, DictConfig):
            raise UserError(f"{name} = {node}: not settings with a _target_; write {name}=null to leave it out")
        target = str(node.get("_target_"))
        check_target(name, target)
        try:
            made.append(hydra.utils.instantiate(node, _recursive_=False))  # no _target_ further inside
        except HydraException as error:
            reason = error.__cause__ if isinstance(error.__cause__, UserError) else one_line(error)
            raise UserError(f"{name} = {target}: {reason}") from None
    return made


def check_target(name: str, target: str) -> None:
    """Raises UserError unless a _target_ names a callback or logger of ours or Lightning's: no function, nothing they import."""
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger

    try:
        kind = hydra.utils.get_object(target) if target.startswith(TRUSTED) else None
    except Exception as error:
        raise UserError(f"{name}._target_ = {target}: not found; {one_line(error)}") from None
    if not (isinstance(kind, type) and issubclass(kind, (Callback, Logger)) and f"{kind.__module__}.".startswith(TRUSTED)):
        raise UserError(f"{name}._target_ = {target}: not allowed; name a callback or logger in {' or '.join(TRUSTED)}")


def typed_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Overrides as keys and values, in Hydra's grammar; None for one that deletes."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {override.key_or_group: None if override.is_delete() else override.value() for override in parsed}


def quoted(key: str, value: str) -> str:
    """An override as Hydra reads it, whatever is in the value."""
    return f"{key}={value}" if re.fullmatch(r"[\w./-]+", value) else f"{key}='" + value.replace("'", r"\'") + "'"


def run(main: Callable[[], Any]) -> None:
    """Call a function that Hydra decorates; raise UserError for what Hydra or its option parser complains about."""
    # Our launchers are the plugins' of the same name with other values, which is what Hydra warns of
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/.*' is validated against ConfigStore schema")
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from None
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT, errno.ENAMETOOLONG):
            raise
        raise UserError(f"file = {error.filename}: {error.strerror}; choose another hydra.run.dir, or make room") from None
    except ValueError as error:
        if not str(error).startswith("Config group override"):
            raise
        raise UserError(f"override = {' '.join(sys.argv[1:])}: null is no choice; leave a group out with ~, as ~logger") from None
    except SystemExit as stop:
        if isinstance(stop.__cause__, UserError):
            raise stop.__cause__ from None
        if stop.code == 2:  # from argparse, which has printed its usage
            dashed = " ".join(argument for argument in sys.argv[1:] if argument.startswith("-"))
            raise UserError(f"options = {dashed}: settings have no dashes; write them as trainer.max_steps=3") from None
        raise


def compose(overrides: Sequence[str], name: str, run_dir: Path) -> DictConfig:
    """What scripts/train.py would run with these overrides, in a folder of one's own. Raises UserError as it does."""
    try:
        with hydra.initialize_config_dir(CONF, version_base="1.3"):
            cfg = hydra.compose("train", [*overrides, "name=null", "run_dir=null"])
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from None
    cfg.name, cfg.run_dir = name, str(run_dir.absolute())
    return cfg


def explain(error: Exception) -> UserError:
    """A complaint about an override, with the settings or files that it may have meant."""
    text, given = str(error), dict(re.findall(r"([^\s=~+]+)=(\S*)", " ".join(sys.argv[1:])))
    if found := re.search(r"Could not override '(\S+)'", text):
        key = found[1]
        return UserError(f"{key} = {given.get(key, '')}: no such setting; {did_you_mean(key, known_settings())}")
    if found := re.search(
        r"Could not find '(.+)/(.+)'\s+Available options in [^\n]*:\s+(.*?)(?:\n\s*\n|Config search path|$)", text, re.DOTALL
    ):
        group, name, options = found.groups()
        return UserError(f"{group} = {name}: no such file in conf/{group}/; choose one of {', '.join(options.split())}")
    return UserError(f"override = {' '.join(sys.argv[1:])}: {one_line(error)}; see python scripts/train.py --help")


def known_settings() -> list[str]:
    """The names that can be overridden, as the default configuration has them."""
    with hydra.initialize_config_dir(CONF, version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("train"))
    return [*config, *(f"{group}.{key}" for group, node in config.items() if isinstance(node, dict) for key in node)]


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())
