"""Train a GPT, as conf/ and the key=value of the command line say:

python scripts/train.py model=small trainer.max_steps=20000
"""

import os
import sys

import hydra
from omegaconf import DictConfig

from gpt.cli.overrides import CONF, compose, explained, is_sweep, quote_arguments
from gpt.cli.sweep import Sweep
from gpt.settings import UserError, user_errors

HELP = """Train a GPT: python scripts/train.py [key=value ...]

  python scripts/train.py model=tiny trainer.max_steps=200
  python scripts/train.py -m model.n_head=2,4 model.n_layer=2,4    every combination
  python scripts/train.py --cfg job                                every setting there is

A word such as model=tiny chooses a file of conf/model/. So it is with ablation, callbacks, data, experiment, logger,
model/arch, optimizer, scheduler and trainer. A dotted word such as model.n_layer=4 sets a single value.
--hydra-help tells what else Hydra can do."""
HYDRA_OPTIONS = {"-m", "--multirun", "-c", "--cfg", "-i", "--info", "-p", "--package", "--resolve", "--hydra-help", "--version"}


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train one job of a sweep, inside Hydra, and return the loss by which a sweeper may choose."""
    from gpt.cli.jobs import run_sweep_job  # torch and Lightning are imported only when something is trained

    return run_sweep_job(cfg).best_val_loss


def cli() -> None:
    """Train a single run, or hand over to Hydra for sweeps and for its own options."""
    with user_errors():
        arguments = quote_arguments(sys.argv[1:])
        options = [argument for argument in arguments if argument.startswith("-")]
        if {"-h", "--help"} & set(options):
            print(HELP)
        elif options or is_sweep(arguments) or (composition := compose(arguments)).is_sweep:
            run_hydra(arguments, options)
        else:
            from gpt.cli.jobs import run_single

            run_single(composition, arguments)


def run_hydra(arguments: list[str], options: list[str]) -> None:
    """Let Hydra do what its options ask for. A sweep ends with a comparison of its jobs."""
    if unknown := [option for option in options if option.partition("=")[0] not in HYDRA_OPTIONS]:
        raise UserError(f"options = {' '.join(unknown)}: settings have no dashes; write them as trainer.max_steps=3")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come through, to be told in one line
    sys.argv[1:] = arguments
    Sweep.started_here = None
    with explained([argument for argument in arguments if not argument.startswith("-")]):
        main()
    if Sweep.started_here:
        Sweep.started_here.conclude()


if __name__ == "__main__":
    cli()
