"""scripts/train.py and scripts/finetune.py: Hydra's entrance, for single runs and sweeps alike.

What Hydra composes begins with the defaults of `gpt.config`, registered here, and `conf/` changes them.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from gpt.cli.options import newest_run
from gpt.cli.overrides import CONF, FILES, hydra_errors, parse_overrides, quote_paths
from gpt.cli.sweep import Sweep, live_line
from gpt.config import AdamWConfig, FinetuneConfig, MuonConfig, RunConfig, TaskConfig, setting_names
from gpt.errors import UserError, did_you_mean, interrupts_deferred, shorten, user_errors

TRUSTED = ("gpt.callbacks.", "lightning.pytorch.callbacks.", "lightning.pytorch.loggers.")  # modules

store = ConfigStore.instance().store
chosen = {"name", "optimizer", "task", "finetune"}  # which have no default
store("run_defaults", RunConfig().model_dump(mode="json", exclude=chosen) | {"resume": None})
store("finetune_defaults", {"task": TaskConfig().model_dump(), "finetune": FinetuneConfig().model_dump()})
store("adamw_defaults", AdamWConfig().model_dump(mode="json"), group="optimizer")
store("muon_defaults", MuonConfig().model_dump(mode="json"), group="optimizer")


def run_program(config_name: str) -> None:
    """Do what was typed, with conf/CONFIG_NAME.yaml. A sweep ends with a comparison of its jobs."""
    with user_errors(), hydra_errors():
        for option, _, value in (word.partition("=") for word in sys.argv[1:]):
            if option.startswith("-") and option not in get_args_parser()._option_string_actions:
                advice = did_you_mean(option.lstrip("-").replace("-", "_"), setting_names())
                raise UserError(f"{option} = {value}: no such option; settings have no dashes; {advice}")
        sys.argv[1:] = quote_paths(sys.argv[1:])
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come through, to be told in one line
        logging.raiseExceptions = False  # of --info, when its reader has closed the pipe
        Sweep.started_here = None
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(run_job)()
            if Sweep.started_here and Sweep.started_here.jobs:
                Sweep.started_here.conclude()
        finally:
            if Sweep.started_here:
                Sweep.started_here.remove_empty()


def run_job(cfg: DictConfig) -> float:
    """Train as Hydra has composed, a single run or a job of a sweep, and return the loss by which to choose.

    Mistakes end a single run here, because Hydra would add a line of its own.
    """
    settings = HydraConfig.get()
    is_sweep = settings.mode == RunMode.MULTIRUN
    with contextlib.nullcontext() if is_sweep else user_errors(), hydra_errors():
        # this imports torch and Lightning, which --help can do without
        with interrupts_deferred():
            from gpt.cli.summary import describe_resuming, summarise
            from gpt.machine import is_first_process
            from gpt.run import Run
            from gpt.train import RunOptions, train

        folder, cwd = Path(settings.runtime.output_dir), Path(settings.runtime.cwd)
        if str(cwd) not in sys.path:
            sys.path.append(str(cwd))  # where a callback of the user's own may be
        values = plain(cfg, cwd if settings.job.chdir else None)
        typed = parse_overrides(settings.overrides.task)
        if values.pop("resume") is None:
            if values["init"] == "last":
                values["init"] = newest_run(cwd / "outputs")
            config = RunConfig.from_dict(values)
        else:
            del typed["resume"]
            config = stored_config(folder, typed, values)
        options = RunOptions(sys.argv[:], describe_resuming(folder, config), typed)
        if is_sweep:
            sweep = Sweep.started_here  # None in other processes, which have no terminal
            live = live_line(f"{settings.job.num + 1} of {sweep.jobs}", folder.name) if sweep else []
            options = RunOptions(sys.argv, overrides=typed, callbacks=live, quiet=True)
        try:
            result = train(config, folder, options)
        except OSError as error:
            if error.filename is None or (folder / "run.json").exists():
                raise
            reason = "it was removed or renamed while the run was training; put it back and resume the run"
            raise UserError(f"run_dir = {folder}: {reason}") from None
        if not is_sweep and is_first_process():
            os.chdir(cwd)
            summarise(folder, result, Run(folder).config or config)
        return result.loss


def plain(cfg: DictConfig, cwd: Path | None = None) -> dict[str, Any]:
    """All settings but Hydra's own as plain values, every interpolation resolved, and paths from `cwd`."""
    own = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    for key in FILES:
        place = OmegaConf.select(own, key)
        if cwd is not None and place not in (None, "last", "pretrained"):
            names = [place] if isinstance(place, str) else place
            found = [str(cwd / Path(name).expanduser()) for name in names]
            OmegaConf.update(own, key, found[0] if isinstance(place, str) else found)
    return OmegaConf.to_container(own, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def compose_config(overrides: Sequence[str], config_name: str = "train") -> RunConfig:
    """The configuration that scripts/train.py would make of these overrides. Raises UserError."""
    GlobalHydra.instance().clear()
    with hydra_errors(overrides), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(config_name, quote_paths(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)  # for ${hydra:runtime.choices.model}
        values = plain(cfg)
    del values["resume"]
    return RunConfig.from_dict(values)


def stored_config(folder: Path, typed: Mapping[str, Any], values: Mapping[str, Any]) -> RunConfig:
    """The configuration of the run in `folder`, with what was typed in place of single settings.

    `values` are those that were composed without it. Raises UserError for a choice of another group, and for
    a stored class that is neither of this project nor one of Lightning's callbacks and loggers, unless it is
    typed again.
    """
    from gpt.run import read_config

    stored = read_config(folder)
    stored["data"]["folder"] = values["data"]["folder"]
    for place in [f"{group}.{name}" for group in ("callbacks", "logger") for name in stored[group]]:
        group, _, name = place.partition(".")
        for target in targets(stored[group][name]):
            if target not in typed.values() and not is_trusted(target):
                advice = f"if you trust it, add ++{place}._target_={target}"
                raise UserError(f"{place} = {target}: neither of this project nor of Lightning; {advice}")
    changed = OmegaConf.create(stored)
    for key, value in typed.items():
        if key in ("callbacks", "logger") and value is not None:  # more of them may be added
            default: Any = OmegaConf.load(CONF / "callbacks" / "default.yaml") if key == "callbacks" else {}
            added = {name: node for name, node in values[key].items() if name not in default}
            OmegaConf.update(changed, key, added | stored[key])
            continue
        if (CONF / key).is_dir() or "/" in key:
            reason = "a run that is resumed continues with its own"
            raise UserError(f"{key} = {shorten(value)}: not with resume, because {reason}; leave it out")
        OmegaConf.update(changed, key, value, force_add=True)
    return RunConfig.from_dict(OmegaConf.to_container(changed))  # type: ignore[arg-type]


def is_trusted(target: str) -> bool:
    """Whether it is a callback or logger of this project or of Lightning: not what their modules import."""
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger

    with contextlib.suppress(ImportError, ValueError):
        found = get_object(target) if target.startswith(TRUSTED) else None
        return isinstance(found, type) and issubclass(found, (Callback, Logger))
    return False


def targets(node: Any) -> list[str]:
    """The classes that a node of a configuration names, at any depth."""
    inner = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
    own = [str(node["_target_"])] if isinstance(node, dict) and "_target_" in node else []
    return own + [target for one in inner for target in targets(one)]


train = partial(run_program, "train")  # scripts/train.py, and the command gpt-train
finetune = partial(run_program, "finetune")
