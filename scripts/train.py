"""Train a GPT, as conf/ and the key=value of the command line say:

python scripts/train.py model=small trainer.max_steps=20000
"""

from gpt.cli.program import run_program

HELP = """Train a GPT: python scripts/train.py [key=value ...]

  python scripts/train.py model=tiny trainer.max_steps=200
  python scripts/train.py init=outputs/RUN data.path=my.txt        go on from other weights, as a new run
  python scripts/train.py -m model.n_head=2,4 model.n_layer=2,4    every combination
  python scripts/train.py --cfg job                                every setting there is

A word such as model=tiny chooses a file of conf/model/. So it is with ablation, callbacks, data, experiment, logger,
model/arch, optimizer, scheduler and trainer. A dotted word such as model.n_layer=4 sets a single value.
--hydra-help tells what else Hydra can do."""


def cli() -> None:
    """Train a single run, or hand over to Hydra for sweeps and for its own options."""
    run_program("train", HELP)


if __name__ == "__main__":
    cli()
