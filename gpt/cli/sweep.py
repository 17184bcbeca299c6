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
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gpt.cli.options import find_unfinished
from gpt.cli.overrides import hydra_errors, legible, name_run, parse_overrides
from gpt.config import short_names
from gpt.errors import UserError, one_line, printable, shorten, user_errors
from gpt.files import write_text

# here, since each process of a sweep imports this
OmegaConf.register_new_resolver("legible", legible, replace=True)
MOST_JOBS = 10_000  # of one sweep


class Sweep(Callback):
    """Names a run's folder after what was typed, and a sweep's and its jobs' after what varies.

    So the same command continues a sweep. A job that fails leaves error.txt in its folder; others continue.
    """

    started_here: "Sweep | None" = None  # by this process; jobs in other processes get a copy of it

    def __init__(self) -> None:
        self.folder, self.jobs = Path(), 0  # 0: a single run
        self.created: Path | None = None  # the outermost folder that did not exist before
        self.started = 0.0  # seconds since 1970

    # Hydra only warns of an exception in a callback, and continues. So mistakes end the program here

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Choose the folder of a single run: that of the run it resumes, or a new one unless it was typed."""
        with user_errors(), hydra_errors():
            HydraConfig.instance().set_config(config)  # for ${hydra:runtime.choices.model}
            is_typed, folder = was_typed(config, "hydra.run.dir"), Path(config.hydra.run.dir)
            if config.resume is not None:
                found = find_unfinished(str(config.resume))
                if is_typed and folder.absolute() != found.absolute():
                    reason = "it continues in the run's own folder"
                    raise UserError(f"resume = {shorten(config.resume)}: {reason}; leave hydra.run.dir out")
                folder = found
            elif not is_typed:
                if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # of torchrun; Lightning types the folder
                    advice = "set hydra.run.dir=outputs/NAME"
                    raise UserError(f"hydra.run.dir = (missing): several processes need one folder; {advice}")
                typed = parse_overrides(typed_overrides(config, "task"))
                folder = folder.with_name(name_run(folder.name, config.name, typed))
            folder = self.begin(folder, must_be_new=config.resume is None and not is_typed)
            set_hydra(config, "hydra.run.dir", str(folder))

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Choose the folders of a sweep and of its jobs, and print what varies."""
        warnings.filterwarnings("ignore", "A worker stopped")  # joblib replaces those that have grown
        with user_errors(), hydra_errors():
            HydraConfig.instance().set_config(config)
            if config.resume is not None:
                reason = "not for sweeps; repeat the command to continue one"
                raise UserError(f"resume = {shorten(config.resume)}: {reason}")
            typed = typed_overrides(config, "task")
            sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
            swept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
            varied = list_values([*swept, *typed])
            names, self.jobs = short_names(list(varied)), math.prod(map(len, varied.values()))
            if self.jobs > MOST_JOBS:
                many = f"{self.jobs:,} jobs or more; at most {MOST_JOBS:,} at once"
                raise UserError(f"sweep = {', '.join(names)}: {many}")
            digest = hashlib.sha256("\n".join(sorted(typed)).encode()).hexdigest()[:8]
            name = "_".join([config.name, *(name for name in names if name != "seed")])[:80]
            set_hydra(config, "hydra.sweep.dir", f"outputs/sweeps/{name}_{digest}")
            set_hydra(config, "hydra.sweep.subdir", name_jobs(names, varied))
            folder, shown = self.begin(Path(config.hydra.sweep.dir)), zip(names, varied.values(), strict=True)
            print(describe_sweep(f"sweep of {self.jobs:,} runs", folder, dict(shown)), flush=True)

    def begin(self, folder: Path, must_be_new: bool = False) -> Path:
        """Make and return the folder, NAME-2 if it must be new and is not. Raises UserError if that fails."""
        # by os.path: pathlib raises OSError for a name that is too long
        missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
        self.created = missing[-1].absolute() if missing else None
        self.started, Sweep.started_here = time.time(), self
        found, number = folder, 1
        while True:
            self.folder = found.absolute()
            try:
                found.mkdir(parents=True, exist_ok=not must_be_new)
                return found
            except OSError as error:
                if not (must_be_new and os.path.exists(found)):
                    reason = f"{error.strerror}; choose another hydra.run.dir or hydra.sweep.dir"
                    raise UserError(f"file = {shorten(folder, 200)}: {reason}") from None
            number += 1
            found = folder.with_name(f"{folder.name}-{number}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Print the job's line, and keep the reason of a job that failed."""
        from gpt.machine import is_first_process

        if config.hydra.mode != RunMode.MULTIRUN or not is_first_process():
            return
        folder = Path(config.hydra.runtime.output_dir)
        outcome = describe_outcome(folder, job_return, self.started)
        # or Hydra would stop the sweep
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        later = "" if Sweep.started_here else time_left(*self.progress())  # where no live line says it
        later = f"  {later}".rstrip()
        print(f"{config.hydra.job.num + 1} of {self.jobs}  {folder.name}: {outcome}{later}", flush=True)

    def progress(self) -> tuple[float, int, int]:
        """When the sweep started, how many jobs have been trained since, and how many are left.

        Jobs of other processes are counted too, by the files with which they end.
        """
        endings = [path for name in ("result.json", "error.txt") for path in self.folder.glob(f"**/{name}")]
        results = {path.parent for path in endings if path.name == "result.json"}
        now = {path.parent for path in endings if path.stat().st_mtime >= self.started}
        return self.started, len(results & now), self.jobs - len(results | now)

    def conclude(self) -> None:
        """Compare the jobs of a sweep. Raises UserError if some failed; if none began, nothing is left."""
        from gpt.analysis import report_line, table_of

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
        """Remove what Hydra leaves of a sweep, and the folders that were made if nothing else is in them."""
        with contextlib.suppress(OSError):  # its name is too long
            (self.folder / "multirun.yaml").unlink(missing_ok=True)  # the runs have their own config.yaml
        for path in (self.folder, *self.folder.parents):
            if self.created and path.is_relative_to(self.created):
                with contextlib.suppress(OSError):  # something is in it
                    path.rmdir()


def typed_overrides(config: DictConfig, kind: str) -> list[str]:
    """What was typed: the overrides of the kind `task` or `hydra`, in which nothing is interpolated."""
    return OmegaConf.to_container(config.hydra.overrides[kind], resolve=False)  # type: ignore[return-value]


def was_typed(config: DictConfig, key: str) -> bool:
    return any(override.startswith(f"{key}=") for override in typed_overrides(config, "hydra"))


def set_hydra(config: DictConfig, key: str, value: str) -> None:
    """Set one of Hydra's settings, for a run or for a sweep and each of its jobs, unless it was typed."""
    if not was_typed(config, key):
        with read_write(config.hydra), open_dict(config.hydra):
            OmegaConf.update(config, key, value)
            config.hydra.overrides.hydra.append(f"{key}='{value}'")


def list_values(overrides: list[str]) -> dict[str, list[str]]:
    """The values of each setting that varies, as Hydra reads them. Raises UserError for an interval."""
    parsed, values = OverridesParser.create().parse_overrides(overrides), {}
    for key, override in {one.key_or_group: one for one in parsed}.items():  # of one setting, the last counts
        if override.is_discrete_sweep():
            values[key] = list(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
        elif override.is_sweep_override():
            reason = "not a list of values; write them as key=1,2,3"
            raise UserError(f"sweep = {shorten(override.input_line)}: {reason}")
    return values


def name_jobs(names: Sequence[str], varied: Mapping[str, Sequence[str]]) -> str:
    """What names a job's folder, after its own values: n_head-${legible:${model.n_head}}.

    Values that make no good names, or the same one, are replaced by the number of the job.
    """
    choices, parts, length = HydraConfig.get().runtime.choices, [], 0
    for name, (key, values) in zip(names, varied.items(), strict=True):
        shown = [legible(value.strip("'\"")) for value in values]
        if len(set(shown)) < len(values) or "" in shown or any(value.startswith("{") for value in values):
            return "job-${hydra:job.num}"
        place = f"${{hydra:runtime.choices.{key}}}" if key in choices else f"${{{key}}}"
        parts.append(f"{name}-${{legible:{place}}}")
        length += len(name) + 2 + max(map(len, shown))
    return "_".join(parts) or "job" if length <= 200 else "job-${hydra:job.num}"


def describe_sweep(what: str, folder: Path, varied: Mapping[str, Sequence[str]]) -> str:
    """What is printed before the first run: how many there are, where, and what varies."""
    lines = [f"  {name} = {shorten(', '.join(values), 100)}" for name, values in varied.items()]
    return "\n".join([f"{what} in {printable(str(folder))}", *lines])


def describe_outcome(folder: Path, job_return: JobReturn, started: float) -> str:
    """What a job's line says. error.txt keeps why it failed, with the traceback unless it is a mistake."""
    from gpt.run import FolderInUse, Result

    if job_return.status == JobStatus.COMPLETED:
        (folder / "error.txt").unlink(missing_ok=True)
        path = folder / "result.json"
        result = Result.read(path)
        before = " (done before)" if path.stat().st_mtime < started else ""
        return f"{result.headline}, {result.seconds:.0f} s{before}"
    error = job_return._return_value
    if isinstance(error, FolderInUse):  # error.txt would lie in the folder of a run that is well
        return f"left out: {one_line(error)}"
    is_mistake = isinstance(error, UserError)
    reason = one_line(error if is_mistake else f"{type(error).__name__}: {error}")
    trace = "" if is_mistake else "\n" + "".join(traceback.format_exception(error))
    write_text(folder / "error.txt", f"{reason}\n{trace}")
    return f"failed: {reason}"


def time_left(started: float, trained: float, left: float) -> str:
    """How long a sweep needs for the runs that are left, by those that were trained since it started.

    The present run may count in part. Empty as long as too little is known, and at the end.
    """
    if trained < 0.05 or left <= 0:  # the first steps take longer than others
        return ""
    return f"all done in {timedelta(seconds=round((time.time() - started) / trained * left))}"


def live_line(place: str, name: str, started: float, trained: int, left: int) -> list[Any]:
    """The callback that shows a run of a sweep or a search while it trains, if there is a terminal.

    `place` is its number, such as "2 of 8", and the other numbers are those for `time_left`.
    """
    if not sys.stdout.isatty():
        return []
    from gpt.callbacks import ProgressBar

    class LiveLine(ProgressBar):
        def ending(self, trainer: Any) -> str:
            done = (trainer.global_step - self.first_step) / (trainer.max_steps - self.first_step)
            return time_left(started, trained + done, left - done)

    name = shorten(name, shutil.get_terminal_size().columns // 4)
    return [LiveLine(prefix=f"{place}  {name}  ", leave=False)]
