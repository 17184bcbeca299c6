"""scripts/train.py and scripts/finetune.py: Hydra's entrance, for single runs and sweeps alike.

What Hydra composes begins with the defaults of `gpt.config`, which are registered here, and `conf/` changes
them.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from gpt.cli.names import CONF, PATHS, parse_overrides, quote_override, quote_paths
from gpt.cli.sweep import Sweep
from gpt.config import AdamWConfig, FinetuneConfig, MuonConfig, RunConfig, Settings, TaskConfig, setting_names
from gpt.errors import UserError, did_you_mean, shorten, user_errors

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
    with mistakes():
        options = {word.partition("=")[0] for word in sys.argv[1:] if word.startswith("-")}
        if unknown := sorted(options - get_args_parser()._option_string_actions.keys()):
            advice = "settings have no dashes; write them as trainer.max_steps=3"
            raise UserError(f"options = {' '.join(unknown)}: unknown; {advice}")
        sys.argv[1:] = quote_paths(sys.argv[1:])
        os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come through, to be told in one line
        Sweep.started_here = None
        try:
            main()
            if Sweep.started_here:
                Sweep.started_here.conclude()
        finally:
            if Sweep.started_here:
                Sweep.started_here.remove_empty()


@contextlib.contextmanager
def mistakes() -> Iterator[None]:
    """`user_errors`, for which what Hydra complains about is a mistake of the user too."""
    with user_errors():
        try:
            yield
        except Exception as error:
            if (mistake := explain(error)) is None:
                raise
            raise mistake from None


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


def run_job(cfg: DictConfig) -> float | None:
    """Train as Hydra has composed. Mistakes end a single run here: Hydra would add a line of its own."""
    with contextlib.nullcontext() if HydraConfig.get().mode == RunMode.MULTIRUN else mistakes():
        return train_job(cfg)


def train_job(cfg: DictConfig) -> float | None:
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
    if (
        int(os.environ.get("WORLD_SIZE", "1")) > 1
        and "LOCAL_RANK" not in os.environ
        and not settings.overrides.hydra
    ):
        raise UserError(
            "hydra.run.dir = (missing): several processes need one folder; set hydra.run.dir=outputs/NAME"
        )
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
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose(config_name, quote_paths(overrides), return_hydra_config=True)
            # for interpolations such as ${hydra:runtime.choices.model}
            HydraConfig.instance().set_config(cfg)
            values = plain(cfg)
    except Exception as error:
        if (mistake := explain(error, overrides)) is None:
            raise
        raise mistake from None
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


def explain(error: Exception, overrides: Sequence[str] | None = None) -> UserError | None:
    """The one line for what Hydra or OmegaConf complains about. None for any other error, which is a bug."""
    text = f"{error}\n{error.__cause__ or ''}"
    typed = [word for word in (sys.argv[1:] if overrides is None else overrides) if not word.startswith("-")]
    if "Config group override must be" in text:  # such as callbacks=null
        given = {key: value for key, value in parse_overrides(typed).items() if (CONF / key).is_dir()}
        group = next(key for key, value in given.items() if not isinstance(value, (str, list)))
        choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        value = "null" if given[group] is None else given[group]
        reason = f"no such file in conf/{group}/; choose one of {', '.join(choices)}"
        return UserError(f"{group} = {value}: {reason}")
    if not type(error).__module__.startswith(("hydra", "omegaconf")):
        return None
    if found := re.search(r"Could not override '([^'@]+)", text):
        key = found[1]
        value = next((word.partition("=")[2] for word in typed if word.lstrip("+~").startswith(key)), "")
        if (
            key.partition(".")[0] in ("task", "finetune")
            and "finetune_main" not in text
            and not (CONF / key).is_dir()
        ):
            return UserError(f"{key} = {shorten(value)}: a setting of fine-tuning; start scripts/finetune.py")
        groups = {str(path.parent.relative_to(CONF)) for path in CONF.glob("*/**/*.yaml")}
        advice = did_you_mean(key, {*setting_names(RunConfig), *groups, "resume"})
        if key.startswith("trainer."):
            advice += f" (an argument of Lightning's Trainer is added by +{key})"
        return UserError(f"{key} = {shorten(value)}: no such setting; {advice}")
    if found := re.search(
        r"Could not find '([^']+)/([^'/]+)'\n\nAvailable options in '[^']+':\n(.*)", text, re.DOTALL
    ):
        listed = re.findall(r"^\t(\S+)$", found[3], re.MULTILINE)
        choices = [word for word in listed if not word.endswith("_defaults")]
        reason = f"no such file in conf/{found[1]}/; choose one of {', '.join(choices)}"
        return UserError(f"{found[1]} = {found[2]}: {reason}")
    if "Ambiguous value" in text:
        several = next((word for word in typed if "," in word), typed[0])
        return UserError(f"{several} = (several values): that is a sweep; add -m")
    advice = "see python scripts/train.py --help"
    return UserError(f"override = {shorten(' '.join(typed))}: {shorten(text, 200)}; {advice}")


__all__ = ["compose_config", "finetune", "quote_override", "train"]
