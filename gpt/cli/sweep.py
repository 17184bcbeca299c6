"""What happens around the runs that Hydra starts: their folders, a line for each job, and a comparison."""

import contextlib
import hashlib
import itertools
import math
import os
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gpt.cli.mistakes import hydra_errors
from gpt.cli.names import legible, name_run, parse_overrides, short_names
from gpt.errors import UserError, one_line, printable, shorten, user_errors
from gpt.files import write_text

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.callbacks import Callback as TrainerCallback

# here, since each process of a sweep imports this
OmegaConf.register_new_resolver("legible", legible, replace=True)
ENDINGS = ("result.json", "error.txt")  # the files with which a job ends
MOST_JOBS = 10_000  # of one sweep


class Sweep(Callback):
    """Names a run's folder after what was typed, and a sweep's and its jobs' after what varies.

    So the same command continues a sweep. A job that fails leaves error.txt in its folder; the others
    continue.
    """

    started_here: "Sweep | None" = None  # by this process; jobs in other processes get a copy of it

    def __init__(self) -> None:
        self.folder, self.jobs = Path(), 0  # 0: a single run
        self.created: Path | None = None  # the outermost folder that did not exist before
        self.started = self.job_started = 0.0

    # Hydra only warns of an exception in a callback, and continues. So mistakes end the program here

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Choose the folder of a single run: that of the run it resumes, or a new one unless it was typed."""
        with user_errors(), hydra_errors():
            HydraConfig.instance().set_config(config)  # for ${hydra:runtime.choices.model}
            is_typed, folder = was_typed(config, "hydra.run.dir"), Path(config.hydra.run.dir)
            if config.resume is not None:
                from gpt.run import find_run

                found = find_run(str(config.resume))
                if is_typed and folder.absolute() != found.absolute():
                    reason = "it continues in the run's own folder"
                    raise UserError(f"resume = {shorten(config.resume)}: {reason}; leave hydra.run.dir out")
                folder = found
            elif not is_typed:
                if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # of torchrun; Lightning types the folder
                    advice = "set hydra.run.dir=outputs/NAME"
                    raise UserError(f"hydra.run.dir = (missing): several processes need one folder; {advice}")
                typed = parse_overrides(list(config.hydra.overrides.task))
                folder = folder.with_name(name_run(folder.name, config.name, typed))
            self.begin(folder, must_be_new=config.resume is None and not is_typed)
            set_hydra(config, "hydra.run.dir", str(self.shown))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Choose the folders of a sweep and of its jobs, and print what varies."""
        warnings.filterwarnings("ignore", "A worker stopped")  # joblib replaces those that have grown
        with user_errors(), hydra_errors():
            HydraConfig.instance().set_config(config)
            if config.resume is not None:
                reason = "not for sweeps; repeat the command to continue one"
                raise UserError(f"resume = {shorten(config.resume)}: {reason}")
            typed: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
            sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
            swept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
            parsed = OverridesParser.create().parse_overrides([*swept, *typed])
            varied = [
                one for one in {one.key_or_group: one for one in parsed}.values() if one.is_sweep_override()
            ]
            values = [list_values(one) for one in varied]
            names = short_names([one.key_or_group for one in varied])
            self.jobs = math.prod(map(len, values))
            if self.jobs > MOST_JOBS:
                many = f"{self.jobs:,} jobs or more; at most {MOST_JOBS:,} at once"
                raise UserError(f"sweep = {', '.join(names)}: {many}")
            digest = hashlib.sha256("\n".join(sorted(typed)).encode()).hexdigest()[:8]
            name = "_".join([config.name, *(name for name in names if name != "seed")])[:80]
            set_hydra(config, "hydra.sweep.dir", f"outputs/sweeps/{name}_{digest}", unless_typed=True)
            set_hydra(config, "hydra.sweep.subdir", name_jobs(names, varied, values), unless_typed=True)
            self.begin(Path(config.hydra.sweep.dir))
            shown = dict(zip(names, values, strict=True))
            print(describe_sweep(f"sweep of {self.jobs:,} runs", self.shown, shown), flush=True)

    def begin(self, folder: Path, must_be_new: bool = False) -> None:
        """Make the folder, NAME-2 and so on if it must be new and is not. Raises UserError if that fails."""
        # by os.path: pathlib raises OSError for a name that is too long
        missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
        self.created = missing[-1].absolute() if missing else None
        self.folder, self.started, Sweep.started_here = folder.absolute(), time.time(), self
        for number in itertools.count(1):
            found = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            try:
                found.mkdir(parents=True, exist_ok=not must_be_new)
                break
            except OSError as error:
                if not (must_be_new and os.path.exists(found)):
                    reason = f"{error.strerror}; choose another hydra.run.dir or hydra.sweep.dir"
                    raise UserError(f"file = {shorten(folder, 200)}: {reason}") from None
        self.shown, self.folder = found, found.absolute()

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        self.job_started = time.time()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Print the job's line, and keep the reason of a job that failed."""
        from gpt.machine import is_first_process

        if config.hydra.mode != RunMode.MULTIRUN or not is_first_process():
            return
        folder = Path(config.hydra.runtime.output_dir)
        outcome = describe_outcome(folder, job_return, self.job_started)
        # or Hydra would stop the sweep
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        later = "" if Sweep.started_here else f"  {self.time_left()}".rstrip()  # where no live line says it
        print(f"{config.hydra.job.num + 1} of {self.jobs}  {folder.name}: {outcome}{later}", flush=True)

    def live_line(self, number: int, name: str) -> "list[TrainerCallback]":
        """The callbacks that show a job on a terminal while it trains."""
        return live_line(number + 1, self.jobs, name, self.time_left())

    def time_left(self) -> "TimeLeft":
        """How long the sweep still takes, by the files with which jobs end, those of other processes as well."""
        ended = {path: path.stat().st_mtime for name in ENDINGS for path in self.folder.glob(f"**/{name}")}
        results = {path.parent for path in ended if path.name == "result.json"}
        now = {path.parent for path, written in ended.items() if written >= self.started}
        return TimeLeft(self.started, len(results & now), self.jobs - len(results | now))

    def conclude(self) -> None:
        """Compare the jobs of a sweep. Raises UserError if some failed, and leaves nothing if none could
        begin.
        """
        if not self.jobs:
            return
        from gpt.analysis.report import report_line, table_of

        # Hydra's; the runs have their own config.yaml
        (self.folder / "multirun.yaml").unlink(missing_ok=True)
        errors = sorted(self.folder.glob("**/error.txt"))
        if errors and not any(self.folder.glob("**/config.yaml")):
            reasons = [path.read_text(encoding="utf-8").strip() for path in errors]
            if not any("\n" in reason for reason in reasons):  # a bug would have left its traceback
                shutil.rmtree(self.folder)
                raise UserError(reasons[0])
        if any(self.folder.glob("**/result.json")):
            print(f"\n{table_of(self.folder)}\n{report_line(self.folder)}", flush=True)
        if errors:
            reason = f"{len(errors)} of {self.jobs} jobs failed; the same command tries them again"
            raise UserError(f"sweep = {os.path.relpath(self.folder)}: {reason}")

    def remove_empty(self) -> None:
        """Remove the folder if nothing was written there, and those on the way to it that did not exist."""
        for path in (self.folder / "multirun.yaml", self.folder, *self.folder.parents):
            if self.created and (path.is_relative_to(self.created) or path.suffix == ".yaml"):
                with contextlib.suppress(OSError):  # something is in it
                    path.unlink() if path.suffix == ".yaml" else path.rmdir()


def was_typed(config: DictConfig, key: str) -> bool:
    typed: Any = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    return any(override.startswith(f"{key}=") for override in typed)


def set_hydra(config: DictConfig, key: str, value: str, unless_typed: bool = False) -> None:
    """Set one of Hydra's settings, for a run or for a sweep and each of its jobs."""
    if not (unless_typed and was_typed(config, key)):
        with read_write(config.hydra), open_dict(config.hydra):
            OmegaConf.update(config, key, value)
            config.hydra.overrides.hydra.append(f"{key}='{value}'")


def list_values(override: Override) -> list[str]:
    """The values that a sweeping override stands for. Raises UserError for an interval, which has no single
    values.
    """
    if not override.is_discrete_sweep():
        raise UserError(
            f"sweep = {shorten(override.input_line)}: not a list of values; write them as key=1,2,3"
        )
    return list(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))


def name_jobs(names: Sequence[str], varied: Sequence[Override], values: Sequence[Sequence[str]]) -> str:
    """The name of a job's folder, in which each job fills in its own values:
    n_head-${model.n_head}_seed-${seed}.

    Values that make no good names, or the same one, are replaced by the number of the job.
    """
    choices, parts, length = HydraConfig.get().runtime.choices, [], 0
    for name, override, found in zip(names, varied, values, strict=True):
        key = override.key_or_group
        shown = [legible(value.strip("'\"")) for value in found]
        if len(set(shown)) < len(found) or "" in shown or any(value.startswith("{") for value in found):
            return "job-${hydra:job.num}"
        place = f"${{hydra:runtime.choices.{key}}}" if key in choices else f"${{{key}}}"
        parts.append(f"{name}-${{legible:{place}}}")
        length += len(name) + 2 + max(map(len, shown))
    return "_".join(parts) or "job" if length <= 200 else "job-${hydra:job.num}"


def describe_sweep(what: str, folder: Path, varied: Mapping[str, Sequence[str]]) -> str:
    """What is printed before the first run: how many there are, where, and the values of each setting that
    varies.
    """
    lines = [f"  {name} = {shorten(', '.join(values), 100)}" for name, values in varied.items()]
    place = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return "\n".join([f"{what} in {printable(str(place))}", *lines])


def describe_outcome(folder: Path, job_return: JobReturn, started: float) -> str:
    """What the line of a job says. For a failed job, error.txt keeps it, with the traceback unless it is a
    mistake.
    """
    if job_return.status == JobStatus.COMPLETED:
        from gpt.run import Result

        (folder / "error.txt").unlink(missing_ok=True)
        path = folder / "result.json"
        result = Result.read(path)
        before = " (done before)" if path.stat().st_mtime < started else ""
        return f"{result.headline}, {result.seconds:.0f} s{before}"
    error = job_return._return_value
    is_mistake = isinstance(error, UserError)
    reason = one_line(error if is_mistake else f"{type(error).__name__}: {error}")
    trace = "" if is_mistake else "\n" + "".join(traceback.format_exception(error))
    write_text(folder / "error.txt", f"{reason}\n{trace}")
    return f"failed: {reason}"


class TimeLeft:
    """How long a sweep needs for its remaining runs, by those that were trained since it started and the
    present one.
    """

    def __init__(self, started: float, trained: int, left: int) -> None:
        self.started, self.trained, self.left = started, trained, left  # `left` counts the present run
        self.share = 0.0  # how much of the present run is done

    def __str__(self) -> str:
        """Empty as long as too little is known, and at the end."""
        done, left = self.trained + self.share, self.left - self.share
        if done < 0.05 or left <= 0:  # the first steps take longer than others
            return ""
        return f"all done in {timedelta(seconds=round((time.time() - self.started) / done * left))}"


def live_line(number: int, runs: int, name: str, left: TimeLeft) -> "list[TrainerCallback]":
    """The callback that shows a run of a sweep or a search while it trains. None if there is no terminal."""
    if not sys.stdout.isatty():
        return []
    from gpt.callbacks import ProgressBar

    class LiveLine(ProgressBar):
        def ending(self, trainer: "L.Trainer") -> str:
            left.share = (trainer.global_step - self.first_step) / (trainer.max_steps - self.first_step)
            return str(left)

    name = shorten(name, shutil.get_terminal_size().columns // 4)
    return [LiveLine(prefix=f"{number} of {runs}  {name}  ", leave=False)]
