"""From what was typed to a run: a single one, one that is resumed, or a job of a sweep."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from gpt.cli.naming import name_run
from gpt.cli.overrides import Composition, asked_of_model, compose, parse_overrides, plain, quote_override
from gpt.cli.report import describe_resuming, report
from gpt.cli.runs import newest_run
from gpt.cli.sweep import Sweep
from gpt.config import RunConfig
from gpt.errors import UserError, shorten
from gpt.runs.folder import unused_folder
from gpt.runs.init import fit_to_weights
from gpt.runs.machine import is_first_process
from gpt.runs.result import Result
from gpt.runs.resume import find_run, load_run_config
from gpt.runs.train import train
from gpt.runs.trainer import RunOptions


def run_single(composition: Composition, arguments: Sequence[str]) -> None:
    """Train the run that was composed, or go on with the one that `resume=` names, and report its result."""
    values, folder, overrides = dict(composition.values), composition.folder, parse_overrides(arguments)
    resume, has_own_folder = values.pop("resume", None), "hydra.run.dir" in overrides
    if resume is not None:
        if has_own_folder:
            raise UserError(
                f"resume = {shorten(resume)}: goes on in the run's own folder; leave hydra.run.dir out"
            )
        overrides.pop("resume")
        folder = find_run(str(resume))
        data = values.get("data")
        config = load_run_config(folder, overrides, data["folder"] if isinstance(data, dict) else "data")
        return train_and_report(config, folder, overrides, "resume")
    config = RunConfig.from_dict(with_init(values, overrides))
    if has_own_folder:
        return train_and_report(config, folder, overrides)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "hydra.run.dir = (missing): several processes need one folder; set hydra.run.dir=outputs/NAME"
        )
    with unused_folder(folder.with_name(name_run(folder.name, overrides, config))) as folder:
        train_and_report(config, folder, overrides)


def train_and_report(
    config: RunConfig, folder: Path, overrides: Mapping[str, Any], place: str = "hydra.run.dir"
) -> None:
    command = sys.argv[:]
    # Lightning starts further processes by this program's command line, which now tells them to join the run in its folder
    others = [argument for argument in command[1:] if not argument.startswith(f"{place}=")]
    sys.argv[1:] = [*others, f"{place}={folder.absolute()}"]
    given = {key: value for key, value in overrides.items() if not key.startswith("hydra")}
    result = train(config, folder, RunOptions(command, describe_resuming(folder, config), given))
    if is_first_process():
        report(folder, result, config)


def run_sweep_job(cfg: DictConfig) -> Result:
    """Train one job of a sweep in the folder that Hydra has made for it. Its line is printed by `gpt.cli.sweep`."""
    hydra_config = HydraConfig.get()
    values = {str(key): plain(cfg, str(key)) for key in cfg}
    if (resume := values.pop("resume", None)) is not None:
        raise UserError(f"resume = {shorten(resume)}: not for sweeps; repeat the command to continue one")
    folder, sweep = Path(hydra_config.runtime.output_dir), Sweep.started_here
    live = sweep.live_line(hydra_config.job.num, folder.name) if sweep else []
    overrides = parse_overrides(hydra_config.overrides.task)
    options = RunOptions(sys.argv, overrides=overrides, callbacks=live, quiet=True)
    return train(RunConfig.from_dict(with_init(values, overrides)), folder, options)


def with_init(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The values with the model and the tokenizer of the weights that `init=` names, if it names any.

    Raises UserError for an override that contradicts them.
    """
    if values.get("init") is None:
        return dict(values)
    place = newest_run() if values["init"] == "last" else values["init"]
    fitted = fit_to_weights(dict(values) | {"init": place}, asked_of_model(overrides))
    data = fitted.get("data")
    if (
        "data.tokenizer" in overrides
        and isinstance(data, dict)
        and overrides["data.tokenizer"] != data["tokenizer"]
    ):
        given = shorten(overrides["data.tokenizer"])
        raise UserError(
            f"data.tokenizer = {given}: the weights of init={shorten(place)} have {data['tokenizer']}; leave it out"
        )
    return fitted


def compose_run(arguments: Sequence[str], name: str) -> RunConfig:
    """The configuration that scripts/train.py would make of these overrides, under another name. Raises UserError."""
    values = compose([*arguments, quote_override("name", name)]).values
    values.pop("resume", None)
    return RunConfig.from_dict(values)
