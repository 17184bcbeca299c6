"""Search for good settings with Optuna, in runs of which those that fall behind are dropped (extra tune):

python scripts/tune.py model=tiny trainer.max_steps=500 --study tiny --trials 20
python scripts/tune.py model=tiny 'optimizer.lr=tag(log,interval(3e-3,3e-2))' model.n_head=1,2 --study heads

Settings with several values are searched. If there are none, conf/hparams_search/default.yaml says what is
searched. hparams_search=NAME names another file there. The same command again adds trials to the study.
Several processes may work on one study at once, in as many terminals. Give each its share of the cores with
OMP_NUM_THREADS.
"""

from gpt.cli.options import Parser, whole_number
from gpt.errors import UserError, user_errors


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    what = "a setting of all trials, as for scripts/train.py, or several values to search"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=what)
    parser.add_argument("--study", default="study", help="its name: it is kept in outputs/tune/NAME")
    trials = "how many trials this process adds"
    parser.add_argument("--trials", type=whole_number(1), default=20, help=trials)
    options = parser.parse_intermixed_args(arguments)  # options may stand between the overrides
    try:
        from gpt.cli.tune import tune  # after --help, which needs no torch
    except ImportError as error:
        raise UserError(f'extra = tune: {error.name} is not installed; pip install -e ".[tune]"') from None
    print(tune(options.study, options.trials, options.overrides))


if __name__ == "__main__":
    with user_errors():
        main()
