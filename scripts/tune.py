"""Search for good settings with Optuna, in runs of which those that fall behind are dropped (extra tune):

python scripts/tune.py model=tiny trainer.max_steps=500 --study tiny --trials 20

The same command again adds trials to the study. Several processes may work on one study at once, in as many terminals.
Give each its share of the cores with OMP_NUM_THREADS. The file conf/tune.yaml says what is searched.
"""

from pathlib import Path

from gpt.cli.options import Parser
from gpt.errors import user_errors

SPACE = Path(__file__).parents[1] / "conf" / "tune.yaml"


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="what all trials share, as for scripts/train.py"
    )
    parser.add_argument("--study", default="study", help="its name: it is kept in outputs/tune/NAME")
    parser.add_argument("--trials", type=int, default=20, help="how many trials this process adds")
    parser.add_argument("--space", type=Path, default=SPACE, help="a YAML file that says what is searched")
    options = parser.parse_intermixed_args(arguments)  # options may stand between the overrides
    from gpt.cli.space import read_space  # after --help, which needs no torch
    from gpt.cli.tune import tune

    print(tune(options.study, options.trials, options.overrides, read_space(options.space)))


if __name__ == "__main__":
    with user_errors():
        main()
