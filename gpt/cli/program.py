"""What scripts/train.py and scripts/finetune.py do with a command line: a single run, or Hydra for sweeps and its own options."""

import os
import sys

import hydra
from omegaconf import DictConfig

from gpt.cli.overrides import CONF, compose, explained, is_sweep, quote_arguments
from gpt.cli.sweep import Sweep
from gpt.errors import UserError, user_errors

HYDRA_OPTIONS = {
    "-m",
    "--multirun",
    "-c",
    "--cfg",
    "-i",
    "--info",
    "-p",
    "--package",
    "--resolve",
    "--hydra-help",
    "--version",
}


def run_program(config_name: str, usage: str) -> None:
    """Run the program whose settings are `conf/{config_name}.yaml`. Its `usage` is what --help prints."""
    with user_errors():
        arguments = quote_arguments(sys.argv[1:])
        options = [argument for argument in arguments if argument.startswith("-")]
        if {"-h", "--help"} & set(options):
            print(usage)
        elif options or is_sweep(arguments) or (composition := compose(arguments, config_name)).is_sweep:
            run_hydra(config_name, arguments, options)
        else:
            from gpt.cli.jobs import run_single

            run_single(composition, arguments)


def run_hydra(config_name: str, arguments: list[str], options: list[str]) -> None:
    """Let Hydra do what its options ask for. A sweep ends with a comparison of its jobs."""
    if unknown := [option for option in options if option.partition("=")[0] not in HYDRA_OPTIONS]:
        raise UserError(
            f"options = {' '.join(unknown)}: settings have no dashes; write them as trainer.max_steps=3"
        )
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come through, to be told in one line
    sys.argv[1:] = arguments
    Sweep.started_here = None
    with explained([argument for argument in arguments if not argument.startswith("-")], config_name):
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(run_job)()
    if Sweep.started_here:
        Sweep.started_here.conclude()


def run_job(cfg: DictConfig) -> float | None:
    """Train one job of a sweep, inside Hydra, and return the loss by which a sweeper may choose."""
    from gpt.cli.jobs import run_sweep_job  # torch and Lightning are imported only when something is trained

    return run_sweep_job(cfg).best_val_loss
