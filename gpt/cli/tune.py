"""A search for good settings with Optuna: each trial is a run, and runs that fall behind are dropped (extra `tune`)."""

import contextlib
import re
import shlex
import sqlite3
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.cli.leftovers import is_refusal, outermost_missing, remove_refused
from gpt.cli.naming import name_settings
from gpt.cli.space import Space, check_space, describe_space, suggest, to_overrides
from gpt.cli.sweep import describe_sweep
from gpt.files import read_text, write_text
from gpt.settings import UserError, one_line, shorten

if TYPE_CHECKING:
    import optuna
    from lightning.pytorch.callbacks import Callback

MOST_TRIALS = 100_000
DATABASE_FILES = (".lock", "study.db", "study.db-journal")


@dataclass
class Search:
    """A study in its folder, and what all of its trials share."""

    folder: Path
    overrides: list[str]
    space: Space
    trials: int  # that this process adds
    started: float = field(default_factory=time.time)
    begun: int = 0  # of these trials
    refusals: list[UserError] = field(default_factory=list)  # by this process: of runs that were refused before they began

    @property
    def name(self) -> str:
        return self.folder.name


def tune(name: str, trials: int, overrides: Sequence[str], space: Space) -> str:
    """Add trials to the study in outputs/tune/NAME, which is made if need be, and return what a terminal should show.

    Raises UserError, and leaves nothing behind, if no run of the search can be made.
    """
    from gpt.analysis.report import table_of

    import_optuna()
    check_name(name)
    if not 1 <= trials <= MOST_TRIALS:
        raise UserError(f"--trials = {shorten(trials)}: must be from 1 to {MOST_TRIALS:,}; set a number in this range")
    check_overrides(overrides)
    check_space(overrides, space, name)
    search = Search(Path("outputs", "tune", name), list(overrides), space, trials)
    created = outermost_missing(search.folder)
    study = open_study(search)
    print(describe_sweep(f"search of {trials:,} runs", search.folder, describe_space(space)), flush=True)
    run_trials(study, search)
    if created is not None:
        remove_if_refused(study, search, created)
    shown = f"\n{table_of(search.folder)}, {', '.join(draw(study, search.folder))}"
    if any(trial.state.name == "COMPLETE" for trial in study.trials):
        best = to_overrides(study.best_params)
        shown += f"\n\nbest: python scripts/train.py {shlex.join([*overrides, *best])}"
    return shown


def import_optuna() -> None:
    """Prepare the libraries of the extra. Raises UserError if one is missing."""
    try:
        import matplotlib
        import optuna
    except ImportError as error:
        raise UserError(f'extra = tune: {error.name} is not installed; pip install -e ".[tune]"') from None
    matplotlib.use("Agg")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that fails has its own line here
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def check_name(name: str) -> None:
    """Raises UserError unless a study's name is one plain path component: it is a folder's name and part of an address."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"--study = {shorten(name)}: not a plain name; use letters, digits, dots, dashes and underscores")


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises UserError for overrides that have no place in a search."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from gpt.cli.overrides import explained

    with explained(overrides):
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        if override.key_or_group == "resume":
            raise UserError("resume = (given): not in a search; the same --study goes on by itself")
        if override.is_sweep_override():
            raise UserError(f"{override.input_line} = (several values): not in a search; write them into the file of --space")


def open_study(search: Search) -> "optuna.Study":
    """The study of a search. Raises UserError if its database is damaged, or if it has searched something else."""
    import optuna
    from filelock import FileLock

    from gpt.runs.folder import check_plain

    database = search.folder / "study.db"
    try:
        search.folder.mkdir(parents=True, exist_ok=True)
        check_plain(search.folder)
        with FileLock(search.folder / ".lock"):  # two processes that begin at once would make the same tables
            check_database(database)
            storage = optuna.storages.RDBStorage(
                f"sqlite:///{database.as_posix()}",  # relative, because ? and % mean something in an address
                engine_kwargs={"connect_args": {"timeout": 60}},  # seconds to wait while another process writes
                heartbeat_interval=30,  # so that the trial of a killed process is noticed, and taken over
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
            )
            study = optuna.create_study(
                storage=storage,
                study_name=search.name,
                load_if_exists=True,
                sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),  # knows what others are trying
                pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            )
            asked = {"overrides": search.overrides, "space": search.space}
            before = study.user_attrs.get("asked", asked)
            study.get_trials()
            if before == asked:
                study.set_user_attr("asked", asked)
    except UserError:
        raise
    except Exception as error:  # a damaged database is noticed in many ways
        advice = f"choose another name, or remove {search.folder}"
        raise UserError(f"--study = {search.name}: its study.db cannot be used, {first_line(error)}; {advice}") from None
    if before != asked:
        raise UserError(f"--study = {search.name}: it has searched {shorten(before, 300)}; choose another name")
    return study


def check_database(path: Path) -> None:
    """Raises sqlite3.DatabaseError if a database exists and is damaged."""
    if path.exists():
        with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
            if (answer := connection.execute("PRAGMA integrity_check").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(answer)


def first_line(error: Exception) -> str:
    """What went wrong, without the statement and the links that SQLAlchemy adds on further lines."""
    return shorten((str(error).splitlines() or [type(error).__name__])[0], 200)


def run_trials(study: "optuna.Study", search: Search) -> None:
    """Run the trials. A study whose very first run cannot begin ends there: the others would not begin either."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    def stop_if_refused(study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> None:
        if search.refusals and all(other.state.name == "FAIL" for other in study.trials):
            study.stop()

    def objective(trial: "optuna.Trial") -> float:
        return run_trial(trial, search)

    try:
        study.optimize(objective, n_trials=search.trials, catch=(UserError,), callbacks=[stop_if_refused])
    except (SQLAlchemyError, StorageInternalError) as error:
        raise UserError(f"--study = {search.name}: its study.db failed, {first_line(error)}; the same command goes on") from None


def run_trial(trial: "optuna.Trial", search: Search) -> float:
    """One run. A trial that takes over from a process that was killed goes on with that one's run."""
    import optuna

    from gpt.cli.jobs import compose_run
    from gpt.cli.live import TimeLeft, live_line
    from gpt.cli.overrides import parse_overrides
    from gpt.runs.train import train
    from gpt.runs.trainer import RunOptions

    taken_over = optuna.storages.RetryHeartbeatStaleTrialCallback.retried_trial_number(trial.study.trials[trial.number])
    folder = search.folder / f"{taken_over if isinstance(taken_over, int) else trial.number:04}"
    values = suggest(trial, search.space)
    overrides = to_overrides(values)
    left = TimeLeft(search.started, search.begun, search.trials - search.begun)
    search.begun += 1
    callbacks = [report_to(trial), *live_line(search.begun, search.trials, name_settings(values), left)]
    config = None
    try:
        config = compose_run([*search.overrides, *overrides], search.name)
        given = parse_overrides([*search.overrides, *overrides])
        options = RunOptions(command=sys.argv, overrides=given, callbacks=callbacks, quiet=True)
        result = train(config, folder, options)
    except (UserError, optuna.TrialPruned) as error:
        if isinstance(error, UserError) and config is not None and not (folder / "config.yaml").exists():
            search.refusals.append(error)
        write_text(folder / "error.txt", f"{one_line(error)}\n")
        print(f"{folder.name}  {' '.join(overrides)}: {one_line(error)}", flush=True)
        raise
    print(f"{folder.name}  {' '.join(overrides)}: val loss {result.loss:.4f}, {result.seconds:.0f} s", flush=True)
    return result.loss


def report_to(trial: "optuna.Trial") -> "Callback":
    """A callback that tells Optuna each validation loss, and ends a run that has fallen behind."""
    import lightning as L
    import optuna

    class Report(L.Callback):
        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trial.report(trainer.callback_metrics["val/loss"].item(), trainer.global_step)
            if trial.should_prune():
                raise optuna.TrialPruned(f"dropped after {trainer.global_step:,} steps: worse than half of the others were then")

    return Report()


def remove_if_refused(study: "optuna.Study", search: Search, created: Path) -> None:
    """Remove a new study of which no run has begun. Raises UserError with the reason of the first one."""
    errors = sorted(search.folder.glob("*/error.txt"))
    states = {trial.state.name for trial in study.trials}
    if states == {"FAIL"} and errors and all(is_refusal(path) for path in errors):
        reason = read_text(errors[0]).strip()
        remove_refused(errors, created, [search.folder / name for name in DATABASE_FILES])
        raise UserError(reason)


def draw(study: "optuna.Study", folder: Path) -> list[str]:
    """Write Optuna's own pictures, as far as there is something to see, and return the names of their files."""
    import matplotlib.pyplot as plt
    from optuna.importance import PedAnovaImportanceEvaluator
    from optuna.visualization import matplotlib as pictures

    from gpt.files import atomic

    drawings: dict[str, Callable[[], Any]] = {
        "history": lambda: pictures.plot_optimization_history(study),
        "slices": lambda: pictures.plot_slice(study),
        "parallel": lambda: pictures.plot_parallel_coordinate(study),
        "importances": lambda: pictures.plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator()),
    }
    written = []
    for name, plot in drawings.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # few trials make poor pictures, which is no news
                axes = plot()
        except (ValueError, RuntimeError):  # too few trials, or all alike
            continue
        figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
        with atomic(folder / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=120, bbox_inches="tight")
        plt.close(figure)
        written.append(f"{name}.png")
    return written
