"""scripts/train.py and scripts/finetune.py: Hydra's entrance, for single runs and sweeps alike.

What Hydra composes begins with the defaults of `gpt.config`, which are registered here, and `conf/` changes
them.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gpt.cli.mistakes import hydra_errors
from gpt.cli.names import CONF, PATHS, parse_overrides, quote_override, quote_paths
from gpt.cli.sweep import Sweep
from gpt.config import AdamWConfig, FinetuneConfig, MuonConfig, RunConfig, Settings, TaskConfig
from gpt.errors import UserError, shorten, user_errors

TRUSTED = ("gpt.callbacks.", "lightning.pytorch.callbacks.", "lightning.pytorch.loggers.")


def defaults(settings: Settings, *without: str) -> dict[str, Any]:
    return settings.model_dump(mode="json", exclude=set(without))


store = ConfigStore.instance()
store.store("run_defaults", defaults(RunConfig(), "name", "optimizer", "task", "finetune") | {"resume": None})
store.store("finetune_defaults", {"task": defaults(TaskConfig()), "finetune": defaults(FinetuneConfig())})
store.store("adamw_defaults", defaults(AdamWConfig()), group="optimizer")
store.store("muon_defaults", defaults(MuonConfig()), group="optimizer")


def run_program(main: Callable[[], Any]) -> None:
    """Run one of the two functions of Hydra below on the command line. A sweep ends with a comparison of its
    jobs.
    """
    with user_errors():
        options = {word.partition("=")[0] for word in sys.argv[1:] if word.startswith("-")}
        if unknown := sorted(options - get_args_parser()._option_string_actions.keys()):
            advice = "settings have no dashes; write them as trainer.max_steps=3"
            raise UserError(f"options = {' '.join(unknown)}: unknown; {advice}")
        sys.argv[1:] = quote_paths(sys.argv[1:])
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come through, to be told in one line
        Sweep.started_here = None
        try:
            with hydra_errors():
                main()
            if Sweep.started_here:
                Sweep.started_here.conclude()
        finally:
            if Sweep.started_here:
                Sweep.started_here.remove_empty()


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def train_main(cfg: DictConfig) -> float | None:
    return run_job(cfg)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="finetune")
def finetune_main(cfg: DictConfig) -> float | None:
    return run_job(cfg)


def train() -> None:
    """scripts/train.py, and the command gpt-train."""
    run_program(train_main)


def finetune() -> None:
    """scripts/finetune.py, and the command gpt-finetune."""
    run_program(finetune_main)


@hydra_errors()
def run_job(cfg: DictConfig) -> float | None:
    """Train the run that Hydra has composed, a single one or a job of a sweep, or continue the one that it
    resumes.

    Returns the loss by which a sweeper may choose.
    """
    # torch and Lightning are imported only when something is trained
    from gpt.callbacks.trainer import RunOptions
    from gpt.cli.summary import describe_resuming, summarise
    from gpt.machine import is_first_process
    from gpt.train import train

    settings = HydraConfig.get()
    folder, cwd, is_sweep = (
        Path(settings.runtime.output_dir),
        settings.runtime.cwd,
        settings.mode == RunMode.MULTIRUN,
    )
    if cwd not in sys.path:
        sys.path.append(cwd)  # where a callback of the user's own may be
    typed = parse_overrides(settings.overrides.task)
    values = plain(cfg)
    resume = values.pop("resume", None)
    if settings.job.chdir:  # relative paths mean the folder where the user stands, not the job's
        values = with_absolute_paths(values, Path(cwd))
    if resume is None:
        config = RunConfig.from_dict(with_init(values, typed, Path(cwd)))
    else:
        config = stored_config(
            folder, {key: value for key, value in typed.items() if key != "resume"}, values
        )
    if is_sweep:
        live = Sweep.started_here.live_line(settings.job.num, folder.name) if Sweep.started_here else []
        return train(config, folder, RunOptions(sys.argv, overrides=typed, callbacks=live, quiet=True)).loss
    result = train(config, folder, RunOptions(sys.argv[:], describe_resuming(folder, config), typed))
    if is_first_process():
        os.chdir(cwd)
        summarise(folder, result, config)
    return result.loss


def plain(cfg: DictConfig) -> dict[str, Any]:
    """All settings but Hydra's own as plain values, every interpolation resolved."""
    own = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
    # type: ignore[return-value] - its keys are text
    return OmegaConf.to_container(own, resolve=True, throw_on_missing=True)


def compose_config(overrides: Sequence[str], config_name: str = "train") -> RunConfig:
    """The configuration that scripts/train.py would make of these overrides. Raises UserError."""
    GlobalHydra.instance().clear()
    with hydra_errors(overrides), hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose(config_name, quote_paths(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)  # for interpolations such as ${hydra:runtime.choices.model}
        values = plain(cfg)
    values.pop("resume", None)
    return RunConfig.from_dict(values)


def with_absolute_paths(values: Mapping[str, Any], cwd: Path) -> dict[str, Any]:
    """The values with paths that do not depend on the working directory."""
    changed = dict(values)
    for key in PATHS:
        group, _, name = key.rpartition(".")
        node = changed.get(group) if group else changed
        if (
            isinstance(node, Mapping)
            and isinstance(place := node.get(name), str)
            and key not in ("name", "resume")
        ):
            path = place if key == "init" and place == "last" else str(cwd / Path(place).expanduser())
            changed |= {group: {**node, name: path}} if group else {name: path}
    return changed


def with_init(values: dict[str, Any], typed: Mapping[str, Any], cwd: Path) -> dict[str, Any]:
    """The values with the model and the tokenizer of the weights that `init=` names, if it names any.

    Raises UserError for a setting that was typed, or set by a choice that was typed, and contradicts them.
    """
    if values.get("init") is None:
        return values
    from gpt.cli.newest import newest_run
    from gpt.interop.weights import fit_to_weights

    asked = {key for key in typed if "." in key}
    for group in ("model", "model/arch", "ablation", "experiment"):
        if (path := CONF / group / f"{typed.get(group)}.yaml").is_file():
            chosen = OmegaConf.to_container(OmegaConf.load(path))
            chosen = chosen.get("model") if group == "experiment" and isinstance(chosen, dict) else chosen
            asked |= {f"model.{name}" for name in chosen or ()} - {"model.defaults"}
    place = newest_run(cwd / "outputs") if values["init"] == "last" else values["init"]
    return fit_to_weights(values | {"init": place}, asked)


def stored_config(folder: Path, typed: Mapping[str, Any], values: Mapping[str, Any]) -> RunConfig:
    """The configuration of the run in `folder`, with what was typed in place of single settings.

    `values` are those that were composed, without the run. Raises UserError for a choice of a whole group,
    and for a stored class that is neither of this project nor one of Lightning's callbacks and loggers,
    unless it is typed again.
    """
    from gpt.run import read_config

    stored = read_config(folder)
    stored["data"]["folder"] = values["data"]["folder"]
    for group in ("callbacks", "logger"):
        for target in targets(stored.get(group)):
            if not target.startswith(TRUSTED) and target not in typed.values():
                name = next(name for name, node in stored[group].items() if target in targets(node))
                advice = f"if you trust it, add ++{group}.{name}._target_={target}"
                raise UserError(
                    f"{group}.{name} = {target}: a class of neither this project nor Lightning; {advice}"
                )
    for key, value in typed.items():
        *groups, setting = key.split(".")
        node: Any = stored if groups else None
        for group in groups:
            node = node.setdefault(group, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            reason = "a run that is resumed continues with its own"
            raise UserError(f"{key} = {shorten(value)}: not with resume, because {reason}; leave it out")
        node[setting] = value
    return RunConfig.from_dict(stored)


def targets(node: Any) -> list[str]:
    """The classes that a node of a configuration names, at any depth."""
    if isinstance(node, dict):
        own = [str(node["_target_"])] if "_target_" in node else []
        return own + [target for inner in node.values() for target in targets(inner)]
    return [target for inner in node for target in targets(inner)] if isinstance(node, list) else []


__all__ = ["compose_config", "finetune", "quote_override", "train"]
