"""Search for good settings with Optuna, in runs of which those that fall behind are dropped (extra tune):

python scripts/tune.py model=tiny trainer.max_steps=500 --study tiny --trials 20
python scripts/tune.py model=tiny 'optimizer.lr=tag(log,interval(3e-3,3e-2))' model.n_head=1,2 --study heads

Settings with several values are searched. If there are none, conf/hparams_search/default.yaml says what is
searched. hparams_search=NAME names another file there. The same command again adds trials to the study.
Several processes may work on one study at once, in as many terminals. Give each its share of the cores with
OMP_NUM_THREADS.
"""

import contextlib
import os
import re
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from gpt.errors import UserError, one_line, shorten, user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
import yaml
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override
from hydra.errors import HydraException

from gpt.cli.main import compose_config
from gpt.cli.options import Parser, whole_number
from gpt.cli.overrides import CONF, name_settings, parse_overrides, quote_paths
from gpt.cli.sweep import describe_sweep, live_line, time_left
from gpt.files import atomic, write_text

if TYPE_CHECKING:  # --help needs neither Optuna nor torch
    from optuna import Study, Trial

TRIES = 20  # points of a space that are composed before a search begins
WHOLE = re.compile(r"\binterval\(\s*\d+\s*,\s*\d+\s*\)")  # Hydra itself makes floats of these ends


@dataclass
class Search:
    """What the trials of a study share, what they vary, and how far this process has come."""

    folder: Path  # whose name is that of the study
    shared: list[str]  # overrides
    space: dict[str, Override]  # those with several values, by setting
    trials: int  # that this process adds
    begun: int = 0  # of these trials
    started: float = field(default_factory=time.time)

    def has_runs(self) -> bool:
        """Whether a run has begun in any process. One that was refused has no configuration."""
        return any(self.folder.glob("*/config.yaml"))


def read_overrides(arguments: Sequence[str]) -> dict[str, Override]:
    """The overrides of a search by setting: the lines of the file in `hparams_search=NAME`, and `arguments`.

    The file is conf/hparams_search/default.yaml if no argument has several values. Of two overrides of one
    setting, the last counts. Raises UserError for what is not in Hydra's grammar, and for `resume`.
    """
    parse = OverridesParser.create().parse_overrides
    try:
        found = {override.get_key_element(): override for override in parse(quote_paths(arguments))}
        chosen = found.pop("hparams_search", None)
        if chosen or not any(override.is_sweep_override() for override in found.values()):
            searched = parse(read_file(chosen.value() if chosen else "default"))
            found = {override.get_key_element(): override for override in searched} | found
    except HydraException as error:
        reason = f"{shorten(error, 200)}; docs/scaling.md shows how several values are written"
        raise UserError(f"search = {shorten(' '.join(arguments))}: {reason}") from None
    if "resume" in found:
        raise UserError("resume = (given): not in a search; the same --study continues by itself")
    return found


def read_file(name: Any) -> list[str]:
    """The overrides in conf/hparams_search/NAME.yaml. Raises UserError if there is no such YAML file."""
    try:
        text = (CONF / "hparams_search" / f"{name}.yaml").read_bytes()
        lines = yaml.load(text, yaml.BaseLoader)  # every value as the text that it is
        return [f"{key}={value}" for key, value in lines.items()]
    except OSError:
        known = ", ".join(sorted(path.stem for path in (CONF / "hparams_search").glob("*.yaml")))
        reason = f"no such file in conf/hparams_search/; choose one of {known}"
        raise UserError(f"hparams_search = {shorten(name)}: {reason}") from None
    except (yaml.YAMLError, AttributeError):
        reason = "not a YAML file of settings; write lines such as model.n_head: choice(1, 2, 4)"
        raise UserError(f"hparams_search = {shorten(name)}: {reason}") from None


def suggest(trial: "Trial", space: dict[str, Override]) -> list[str]:
    """What Optuna tries next, as overrides. Raises UserError for an interval or a range without values.

    Between ends that are typed as whole numbers, an interval has whole numbers only.
    """
    overrides = []
    for key, override in space.items():
        sweep: Any = override.value()
        try:
            if isinstance(sweep, ChoiceSweep):
                value: Any = trial.suggest_categorical(key, list(override.sweep_string_iterator()))
            else:
                is_interval = isinstance(sweep, IntervalSweep)
                numbers = [sweep.start, sweep.end] if is_interval else sorted(sweep.range())
                is_whole = isinstance(numbers[0], int) or WHOLE.search(str(override.input_line))
                choose: Any = trial.suggest_int if is_whole else trial.suggest_float
                step = {} if is_interval else {"step": abs(sweep.step)}
                value = choose(key, numbers[0], numbers[-1], log="log" in sweep.tags, **step)
        except (ValueError, IndexError) as error:
            reason = f"{one_line(error)}; write a lower and a higher number"
            raise UserError(f"{override.input_line}: {reason}") from None
        overrides.append(f"{key}={value}")
    return overrides


def check_space(search: Search) -> None:
    """Raises UserError if none of some random points of the space makes a run, with the reason of the first.

    Single combinations that make no model are left to the search, which reports them and continues.
    """
    import optuna

    probe, refusals = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), []
    for _ in range(TRIES):
        try:
            config = compose_config([*search.shared, *suggest(probe.ask(), search.space)])
            if config.data.val_fraction == 0 and config.data.val_path is None:
                raise UserError("data.val_fraction = 0: a search compares validation losses; hold out a part")
            return
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def open_study(search: Search) -> "Study":
    """The study of a search. Raises UserError if it has searched something else."""
    import optuna

    search.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(search.folder / ".lock"):  # two processes that begin at once would make the same tables
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{search.folder.as_posix()}/study.db",  # relative: signs such as ? are no part of it
            engine_kwargs={"connect_args": {"timeout": 60}},  # seconds to wait while another process writes
            heartbeat_interval=30,  # so that the trial of a killed process is noticed, and taken over
            heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
        )
        # constant_liar: it knows what other processes are trying
        sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
        settings: Any = {"storage": storage, "sampler": sampler, "pruner": pruner}
        study = optuna.create_study(study_name=search.folder.name, load_if_exists=True, **settings)
        asked = [*(str(override.input_line) for override in search.space.values()), *search.shared]
        before = study.user_attrs.get("asked", asked)
        study.set_user_attr("asked", before)
    if before != asked:
        searched = shorten(shlex.join(before), 300)
        raise UserError(f"--study = {search.folder.name}: it has searched {searched}; choose another name")
    return study


def run_trial(trial: "Trial", search: Search) -> float:
    """One run, or what is left of it if this trial takes over from a process that was killed.

    Raises TrialPruned for a run that is dropped or refused. Raises UserError, which ends the search, if it is
    refused and none has begun: the others would not begin either.
    """
    import optuna
    from lightning.pytorch.callbacks import LambdaCallback

    from gpt.train import RunOptions, train

    def report(trainer: Any, module: Any) -> None:
        trial.report(trainer.callback_metrics["val/loss"].item(), trainer.global_step)
        if trial.should_prune():
            done = f"dropped after {trainer.global_step:,} steps"
            raise optuna.TrialPruned(f"{done}: worse than half of the others were then")

    former = optuna.storages.RetryHeartbeatStaleTrialCallback.retried_trial_number
    killed = former(trial.study.trials[trial.number])
    folder = search.folder / f"{trial.number if killed is None else killed:04}"
    chosen, config = suggest(trial, search.space), None
    line, name = f"{folder.name}  {' '.join(chosen)}", name_settings(parse_overrides(chosen))
    search.begun += 1
    live = live_line(f"{search.begun} of {search.trials}", name)
    try:
        config = compose_config([f"name='{search.folder.name}'", *search.shared, *chosen])
        watching = [LambdaCallback(on_validation_end=report), *live]
        typed = parse_overrides([*search.shared, *chosen])
        options = RunOptions(sys.argv, overrides=typed, callbacks=watching, quiet=True)
        result = train(config, folder, options)
    except (UserError, optuna.TrialPruned) as error:
        if config is not None and not search.has_runs():
            raise
        write_text(folder / "error.txt", f"{one_line(error)}\n")
        print(f"{line}: {one_line(error)}", flush=True)
        raise optuna.TrialPruned(str(error)) from None
    later = time_left(search.started, search.begun, search.trials - search.begun)
    print(f"{line}: {result.headline}, {result.seconds:.0f} s{later}", flush=True)
    return result.loss


def draw(study: "Study", folder: Path) -> list[str]:
    """Write Optuna's own pictures, where there is something to see, and return the names of their files."""
    from matplotlib import pyplot
    from optuna.visualization import matplotlib as pictures

    pyplot.switch_backend("Agg")
    drawings: dict[str, Any] = {"history": pictures.plot_optimization_history, "slices": pictures.plot_slice}
    drawings["parallel"] = pictures.plot_parallel_coordinate
    drawings["importances"] = pictures.plot_param_importances
    written = []
    for name, plot in drawings.items():
        with warnings.catch_warnings(), contextlib.suppress(ValueError, RuntimeError):  # few trials, or alike
            warnings.simplefilter("ignore", UserWarning)  # few trials make poor pictures, which is no news
            plot(study)
            with atomic(folder / f"{name}.png") as file:
                pyplot.savefig(file, format="png", dpi=120, bbox_inches="tight")
            written.append(f"{name}.png")
        pyplot.close("all")
    return written


def tune(search: Search) -> str:
    """Add trials to the study in outputs/tune/NAME, making it if need be, and return what is to be shown."""
    import optuna

    from gpt.analysis import table_of

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that fails has its own line here
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    check_space(search)
    varied = {key: [str(one.input_line).partition("=")[2]] for key, one in search.space.items()}
    study = open_study(search)
    print(describe_sweep(f"search of {search.trials:,} runs", search.folder, varied), flush=True)
    study.optimize(lambda trial: run_trial(trial, search), n_trials=search.trials)
    shown = f"\n{table_of(search.folder)}, {', '.join(draw(study, search.folder))}"
    if any(trial.state.name == "COMPLETE" for trial in study.trials):
        best = [f"{key}={value}" for key, value in study.best_params.items()]
        shown += f"\n\nbest: python scripts/train.py {shlex.join([*search.shared, *best])}"
    return shown


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    what = "a setting of all trials, as for scripts/train.py, or several values to search"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=what)
    parser.add_argument("--study", default="study", help="its name: it is kept in outputs/tune/NAME")
    trials = "how many trials this process adds"
    parser.add_argument("--trials", type=whole_number(1), default=20, help=trials)
    options = parser.parse_intermixed_args(arguments)  # options may stand between the overrides
    name = options.study
    if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
        raise UserError(f"--study = {shorten(name)}: not a plain name; use letters, digits, dots, - and _")
    try:
        import matplotlib  # noqa: F401
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError as error:
        raise UserError(f'extra = tune: {error.name} is not installed; pip install -e ".[tune]"') from None
    overrides = read_overrides(options.overrides)
    space = {key: override for key, override in overrides.items() if override.is_sweep_override()}
    shared = [str(override.input_line) for key, override in overrides.items() if key not in space]
    search = Search(Path("outputs", "tune", name), shared, space, options.trials)
    is_new = not search.folder.exists()
    try:
        print(tune(search))
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = shorten(str(error).partition("\n")[0], 200)  # SQLAlchemy adds its statement and links
        advice = f"repeat the command, choose another name, or remove {search.folder}"
        raise UserError(f"--study = {name}: its study.db cannot be used, {reason}; {advice}") from None
    except UserError:
        if is_new and search.folder.exists() and not search.has_runs():
            shutil.rmtree(search.folder)
            with contextlib.suppress(OSError):  # other studies and runs are there
                os.removedirs(search.folder.parent)
        raise


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
