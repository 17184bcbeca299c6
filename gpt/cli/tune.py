"""A search for good settings with Optuna: each trial is a run, and runs that fall behind are dropped."""

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
from typing import Any

import optuna
import yaml
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override
from hydra.errors import HydraException
from lightning.pytorch.callbacks import LambdaCallback
from matplotlib import pyplot
from optuna.storages import RetryHeartbeatStaleTrialCallback
from sqlalchemy.exc import SQLAlchemyError

from gpt.analysis import table_of as compare
from gpt.cli.main import CONF, compose_config
from gpt.cli.names import name_settings, parse_overrides
from gpt.cli.sweep import TimeLeft, describe_sweep, live_line
from gpt.errors import UserError, one_line, shorten
from gpt.files import atomic, write_text
from gpt.train import RunOptions, train

TRIES = 20  # points of a space that are composed before a search begins
WHOLE = re.compile(r"\binterval\(\s*\d+\s*,\s*\d+\s*\)")  # Hydra itself makes floats of these ends


@dataclass
class Search:
    """What the trials of a study share, what they vary, and how far this process has come."""

    folder: Path
    shared: list[str]  # overrides
    space: dict[str, Override]  # those with several values, by setting
    trials: int  # that this process adds
    started: float = field(default_factory=time.time)
    begun: int = 0  # of these trials

    def has_runs(self) -> bool:
        """Whether a run has begun, in this process or another. One that was refused has no configuration."""
        return any(self.folder.glob("*/config.yaml"))


def tune(name: str, trials: int, arguments: Sequence[str]) -> str:
    """Add trials to the study in outputs/tune/NAME, making it if need be, and return what is to be shown.

    `arguments` are overrides, of which those with several values are searched (see `read_overrides`).
    Raises UserError, and leaves nothing behind, if no run of the search can be made.
    """
    if not re.fullmatch(r"\w[\w.-]{0,99}", name, re.ASCII):
        raise UserError(f"--study = {shorten(name)}: not a plain name; use letters, digits, dots, - and _")
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # a trial that fails has its own line here
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    overrides = read_overrides(arguments)
    space = {key: override for key, override in overrides.items() if override.is_sweep_override()}
    shared = [str(override.input_line) for key, override in overrides.items() if key not in space]
    search = Search(Path("outputs", "tune", name), shared, space, trials)
    check_space(search)
    is_new = not search.folder.exists()
    varied = {key: [str(override.input_line).partition("=")[2]] for key, override in space.items()}
    try:
        study = open_study(search)
        print(describe_sweep(f"search of {trials:,} runs", search.folder, varied), flush=True)
        study.optimize(lambda trial: run_trial(trial, search), n_trials=trials)
        shown = f"\n{compare(search.folder)}, {', '.join(draw(study, search.folder))}"
        if any(trial.state.name == "COMPLETE" for trial in study.trials):
            best = [f"{key}={value}" for key, value in study.best_params.items()]
            shown += f"\n\nbest: python scripts/train.py {shlex.join([*shared, *best])}"
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = shorten(str(error).partition("\n")[0], 200)  # SQLAlchemy adds its statement and links
        advice = f"repeat the command, choose another name, or remove {search.folder}"
        raise UserError(f"--study = {name}: its study.db cannot be used, {reason}; {advice}") from None
    except UserError:
        if is_new and not search.has_runs():
            shutil.rmtree(search.folder)
            with contextlib.suppress(OSError):  # other studies and runs are there
                os.removedirs(search.folder.parent)
        raise
    return shown


def read_overrides(arguments: Sequence[str]) -> dict[str, Override]:
    """The overrides of a search by setting: the lines of the file in `hparams_search=NAME`, and `arguments`.

    The file is conf/hparams_search/default.yaml if no argument has several values. Of two overrides of one
    setting, the last counts. Raises UserError for what is not in Hydra's grammar, and for `resume`.
    """
    parse = OverridesParser.create().parse_overrides
    try:
        found = {override.get_key_element(): override for override in parse(list(arguments))}
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
    path = CONF / "hparams_search" / f"{name}.yaml"
    try:
        lines = yaml.load(path.read_bytes(), yaml.BaseLoader)  # every value as the text that it is
        return [f"{key}={value}" for key, value in lines.items()]
    except OSError:
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        reason = f"no such file; choose one of {', '.join(known)}"
    except (yaml.YAMLError, AttributeError):
        reason = "not a YAML file of settings; write lines such as model.n_head: choice(1, 2, 4)"
    raise UserError(f"hparams_search = {shorten(name)}: {reason}")


def check_space(search: Search) -> None:
    """Raises UserError if none of some random points of the space makes a run, with the reason of the first.

    Single combinations that make no model are left to the search, which reports them and continues.
    """
    probe, refusals = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), []
    for _ in range(TRIES):
        try:
            compose_config([*search.shared, *suggest(probe.ask(), search.space)])
            return
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def suggest(trial: optuna.Trial, space: dict[str, Override]) -> list[str]:
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


def open_study(search: Search) -> optuna.Study:
    """The study of a search. Raises UserError if it has searched something else."""
    search.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(search.folder / ".lock"):  # two processes that begin at once would make the same tables
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{search.folder.as_posix()}/study.db",  # relative: signs such as ? are no part of it
            engine_kwargs={"connect_args": {"timeout": 60}},  # seconds to wait while another process writes
            heartbeat_interval=30,  # so that the trial of a killed process is noticed, and taken over
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
        study = optuna.create_study(
            storage=storage,
            study_name=search.folder.name,
            load_if_exists=True,
            # constant_liar: it knows what other processes are trying
            sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        )
        asked = [*(str(override.input_line) for override in search.space.values()), *search.shared]
        before = study.user_attrs.get("asked", asked)
        study.set_user_attr("asked", before)
    if before != asked:
        searched = shorten(shlex.join(before), 300)
        raise UserError(f"--study = {search.folder.name}: it has searched {searched}; choose another name")
    return study


def run_trial(trial: optuna.Trial, search: Search) -> float:
    """One run, or what is left of it if this trial takes over from a process that was killed.

    Raises TrialPruned for a run that is dropped or refused. Raises UserError, which ends the search, if it is
    refused and none has begun: the others would not begin either.
    """

    def report(trainer: Any, module: Any) -> None:
        trial.report(trainer.callback_metrics["val/loss"].item(), trainer.global_step)
        if trial.should_prune():
            done = f"dropped after {trainer.global_step:,} steps"
            raise optuna.TrialPruned(f"{done}: worse than half of the others were then")

    killed = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial.study.trials[trial.number])
    folder = search.folder / f"{trial.number if killed is None else killed:04}"
    chosen, config = suggest(trial, search.space), None
    overrides, line = [*search.shared, *chosen], f"{folder.name}  {' '.join(chosen)}"
    left = TimeLeft(search.started, search.begun, search.trials - search.begun)
    search.begun += 1
    live = live_line(search.begun, search.trials, name_settings(parse_overrides(chosen)), left)
    watching = [LambdaCallback(on_validation_end=report), *live]
    try:
        config = compose_config([f"name='{search.folder.name}'", *overrides])
        options = RunOptions(sys.argv, overrides=parse_overrides(overrides), callbacks=watching, quiet=True)
        result = train(config, folder, options)
    except (UserError, optuna.TrialPruned) as error:
        if config is not None and not search.has_runs():
            raise
        write_text(folder / "error.txt", f"{one_line(error)}\n")
        print(f"{line}: {one_line(error)}", flush=True)
        raise optuna.TrialPruned(str(error)) from None
    print(f"{line}: {result.headline}, {result.seconds:.0f} s", flush=True)
    return result.loss


def draw(study: optuna.Study, folder: Path) -> list[str]:
    """Write Optuna's own pictures, where there is something to see, and return the names of their files."""
    pyplot.switch_backend("Agg")
    pictures = optuna.visualization.matplotlib
    drawings: dict[str, Any] = {
        "history": pictures.plot_optimization_history,
        "slices": pictures.plot_slice,
        "parallel": pictures.plot_parallel_coordinate,
        "importances": pictures.plot_param_importances,
    }
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
