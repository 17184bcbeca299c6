"""What happens around the runs that Hydra starts: their folders, a line for each job, and a comparison."""

import contextlib
import hashlib
import itertools
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

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gpt.cli.options import find_unfinished
from gpt.cli.overrides import hydra_errors, name_run, name_settings, parse_overrides
from gpt.config import short_names
from gpt.errors import UserError, one_line, printable, shorten, user_errors
from gpt.files import write_text


class Sweep(Callback):
    """Names a run's folder after what was typed, and a sweep's and its jobs' after what varies.

    So the same command continues a sweep. A job that fails leaves error.txt in its folder; others continue.
    """

    started_here: "Sweep | None" = None  # by this process; jobs in other processes get a copy of it

    def __init__(self) -> None:
        self.folder, self.jobs, self.started = Path(), 0, time.time()  # 0: a single run; seconds since 1970
        self.made: list[Path] = []  # the folders that did not exist before, from the innermost on

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
            self.begin(folder, must_be_new=config.resume is None and not is_typed)
            set_hydra(config, "hydra.run.dir", str(self.folder))

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
            jobs = list_jobs([*swept, *typed])
            values = {key: list(dict.fromkeys(job[key] for job in jobs)) for key in jobs[0]}
            varied = {key: of_jobs for key, of_jobs in values.items() if len(of_jobs) > 1}
            names, self.jobs = short_names(list(varied)), len(jobs)
            digest = hashlib.sha256("\n".join(sorted(typed)).encode()).hexdigest()[:8]
            name = "_".join([config.name, *(name for name in names if name != "seed")])[:80]
            set_hydra(config, "hydra.sweep.dir", f"outputs/sweeps/{name}_{digest}")
            folders = {name_settings({key: job[key] for key in varied}) for job in jobs}
            are_names = len(folders) == len(jobs) and len(max(folders, key=len)) <= 200
            subdir = f"${{name_job:[{','.join(varied)}]}}" if are_names else "job-${hydra:job.num}"
            set_hydra(config, "hydra.sweep.subdir", subdir)
            self.begin(Path(config.hydra.sweep.dir))
            shown = dict(zip(names, varied.values(), strict=True))
            print(describe_sweep(f"sweep of {self.jobs:,} runs", self.folder, shown), flush=True)

    def begin(self, folder: Path, must_be_new: bool = False) -> None:
        """Make the folder, or NAME-2 if it must be new and is not."""
        Sweep.started_here = self
        for number in itertools.count(1):
            self.folder = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
            self.folder = self.folder.absolute()
            # by os.path: pathlib raises OSError for a name that is too long
            self.made = [path for path in (self.folder, *self.folder.parents) if not os.path.exists(path)]
            try:
                return self.folder.mkdir(parents=True, exist_ok=not must_be_new)
            except FileExistsError:
                if not must_be_new:
                    raise

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Print the job's line. error.txt keeps why it failed, with the traceback unless it is a mistake."""
        from gpt.machine import is_first_process
        from gpt.result import Result
        from gpt.run import FolderInUse

        if config.hydra.mode != RunMode.MULTIRUN or not is_first_process():
            return
        folder, number = Path(config.hydra.runtime.output_dir), config.hydra.job.num + 1
        error, path = job_return._return_value, folder / "result.json"
        if job_return.status == JobStatus.COMPLETED:
            (folder / "error.txt").unlink(missing_ok=True)
            result, before = Result.read(path), " (done before)" * (path.stat().st_mtime < self.started)
            outcome = f"{result.headline}, {result.seconds:.0f} s{before}"
        elif isinstance(error, FolderInUse):  # error.txt would lie in the folder of a run that is well
            outcome = f"left out: {one_line(error)}"
        else:
            is_mistake = isinstance(error, UserError)
            reason = one_line(error if is_mistake else f"{type(error).__name__}: {error}")
            trace = "" if is_mistake else "\n" + "".join(traceback.format_exception(error))
            write_text(folder / "error.txt", f"{reason}\n{trace}")
            outcome = f"failed: {reason}"
        # or Hydra would stop the sweep
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        # Jobs of other processes count too, by the files with which they end
        times = [path.stat().st_mtime for path in self.folder.glob("**/result.json")]
        later = time_left(self.started, sum(time >= self.started for time in times), self.jobs - number)
        print(f"{number} of {self.jobs}  {folder.name}: {outcome}{later}", flush=True)

    def conclude(self) -> None:
        """Compare the jobs of a sweep. Raises UserError if some failed; if none began, nothing is left."""
        from gpt.analysis import report_line, table_of

        folder = Path(os.path.relpath(self.folder))
        errors, results = (sorted(folder.glob(f"**/{name}")) for name in ("error.txt", "result.json"))
        if errors and not any(folder.glob("**/config.yaml")):
            reasons = [path.read_text(encoding="utf-8").strip() for path in errors]
            if not any("\n" in reason for reason in reasons):  # a bug would have left its traceback
                shutil.rmtree(folder)
                raise UserError(reasons[0])
        if results:
            print(f"\n{table_of(folder)}\n{report_line(folder)}", flush=True)
        left_out = self.jobs - len({path.parent for path in (*errors, *results)})  # others are at work there
        faults = [f"{len(errors)} of {self.jobs} jobs failed"] if errors else []
        faults += [f"{left_out} of {self.jobs} jobs were left out"] if left_out > 0 else []
        if faults:
            raise UserError(f"sweep = {folder}: {', '.join(faults)}; the same command tries them again")

    def remove_empty(self) -> None:
        """Remove what Hydra leaves of a sweep, and the folders that were made if nothing else is in them."""
        with contextlib.suppress(OSError):  # its name is too long
            (self.folder / "multirun.yaml").unlink(missing_ok=True)  # the runs have their own config.yaml
        for path in self.made:
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


def list_jobs(overrides: Sequence[str]) -> list[dict[str, str]]:
    """The overrides of each job of a sweep, as Hydra's own sweeper makes them: {"model.n_head": "2"}."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return [dict(override.partition("=")[::2] for override in job) for job in jobs]


def name_job(keys: Sequence[str]) -> str:
    """The name of a job's folder, by its own values of the settings that vary: n_head-2_seed-1."""
    (job,) = list_jobs(typed_overrides(DictConfig({"hydra": HydraConfig.get()}), "task"))
    return name_settings({key: job[key] for key in keys}) or "job"


# here, since each process of a sweep imports this
OmegaConf.register_new_resolver("name_job", name_job, replace=True)


def describe_sweep(what: str, folder: Path, varied: Mapping[str, Sequence[str]]) -> str:
    """What is printed before the first run: how many there are, where, and what varies."""
    lines = [f"  {name} = {shorten(', '.join(values), 100)}" for name, values in varied.items()]
    return "\n".join([f"{what} in {printable(os.path.relpath(folder))}", *lines])


def time_left(started: float, trained: int, left: int) -> str:
    """How long the runs that are left take, by those trained since `started`, in seconds since 1970.

    Empty as long as nothing is known, and at the end.
    """
    seconds = (time.time() - started) / max(trained, 1) * left
    return f", all done in {timedelta(seconds=round(seconds))}" if trained and left else ""


def live_line(place: str, name: str) -> list[Any]:
    """The callback that shows a run of a sweep or a search while it trains, if there is a terminal.

    `place` is its number, such as "2 of 8".
    """
    if not sys.stdout.isatty():
        return []
    from gpt.callbacks import ProgressBar

    name = shorten(name, shutil.get_terminal_size().columns // 4)
    return [ProgressBar(prefix=f"{place}  {name}  ", leave=False)]
