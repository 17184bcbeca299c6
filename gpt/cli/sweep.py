"""What happens around the jobs of a sweep: a folder that the same command finds again, and a line for each job."""

import contextlib
import hashlib
import itertools
import math
import re
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gpt.cli.leftovers import is_refusal, outermost_missing, remove_refused
from gpt.cli.naming import name_place, short_names
from gpt.cli.overrides import explained, plain
from gpt.files import read_text, write_text
from gpt.runs.result import Result
from gpt.settings import UserError, one_line, printable, shorten, user_errors

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback as TrainerCallback

    from gpt.cli.live import TimeLeft

OmegaConf.register_new_resolver("name_place", name_place, replace=True)  # here, because each process of a sweep imports this
ENDINGS = ("result.json", "error.txt")  # the files with which a job ends
PLAIN = re.compile(r"[\w.+-]+")  # a value that is a good name as it is
MOST_JOBS, MOST_CHECKED = 10_000, 100  # of one sweep; those that are composed and checked before the first one starts


class Sweep(Callback):
    """Names a sweep's folder after what varies and a hash of its whole configuration, and each job's after its values.

    So the same command continues a sweep. A job that fails leaves error.txt in its folder, and the others go on.
    """

    started_here: "Sweep | None" = None  # the sweep that this process has started; jobs in other processes get a copy of it

    def __init__(self) -> None:
        self.folder, self.jobs = Path(), 0
        self.created: Path | None = None  # the outermost folder that did not exist before
        self.started = self.job_started = 0.0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Prepare the sweep, or end the program: Hydra would only warn of an exception here, and go on."""
        warnings.filterwarnings("ignore", "A worker stopped")  # joblib replaces processes that have grown, and loses no job
        try:
            with user_errors():
                self.prepare(config)
        except Exception as error:
            traceback.print_exc()
            raise SystemExit(1) from error

    def prepare(self, config: DictConfig) -> None:
        """Check the jobs, and tell Hydra the folders. Raises UserError if no job can be run; nothing is written here."""
        from gpt.config import check_name
        from gpt.runs.folder import check_plain

        HydraConfig.instance().set_config(config)  # for interpolations such as ${hydra:runtime.choices.model}
        if config.resume is not None:
            raise UserError(f"resume = {shorten(config.resume)}: not for sweeps; repeat the command to continue one")
        overrides = merge_params(config)
        varied = [override for override in overrides if override.is_sweep_override()]
        values = [list_values(override) for override in varied]
        names = short_names([override.key_or_group for override in varied])
        jobs = math.prod(len(found) for found in values)
        if jobs > MOST_JOBS:
            raise UserError(f"sweep = {shorten(' '.join(names))}: {jobs:,} jobs or more; at most {MOST_JOBS:,} at once")
        lines = [str(override.input_line) for override in overrides]
        fixed = [line for line, override in zip(lines, overrides, strict=True) if override not in varied]
        check_jobs(config, [[*fixed, *job] for job in itertools.product(*values)])
        check_name(config.name)

        whole = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        digest = hashlib.sha256("\n".join([OmegaConf.to_yaml(whole), *sorted(lines)]).encode()).hexdigest()[:8]
        name = "_".join([config.name, *(name for name in names if name != "seed")])
        prefer(config, "hydra.sweep.dir", f"outputs/sweeps/{name[:80]}_{digest}")
        prefer(config, "hydra.sweep.subdir", name_jobs(names, varied, values))
        self.folder, self.jobs, self.started = Path(config.hydra.sweep.dir), jobs, time.time()
        check_plain(self.folder)
        self.created = outermost_missing(self.folder)
        Sweep.started_here = self
        texts = [[value.partition("=")[2] for value in found] for found in values]
        print(describe_sweep(f"sweep of {jobs:,} runs", self.folder, dict(zip(names, texts, strict=True))), flush=True)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Take the job's folder back if it is empty: the run makes it again, and removes it if the job is refused."""
        self.job_started = time.time()
        if config.hydra.mode == RunMode.MULTIRUN and is_first_process():
            with contextlib.suppress(OSError):
                Path(config.hydra.runtime.output_dir).rmdir()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Print the job's line, and keep the reason of a job that failed."""
        if config.hydra.mode != RunMode.MULTIRUN or not is_first_process():
            return
        folder = Path(config.hydra.runtime.output_dir)
        outcome = describe_outcome(folder, job_return, self.job_started)
        job_return.status, job_return.return_value = JobStatus.COMPLETED, None  # Hydra has nothing to add
        later = "" if Sweep.started_here else f"  {self.time_left()}".rstrip()  # where there is no live line to say it
        print(f"{config.hydra.job.num + 1} of {self.jobs}  {folder.name}: {outcome}{later}", flush=True)

    def live_line(self, number: int, name: str) -> "list[TrainerCallback]":
        """The callbacks that show a job on a terminal while it trains."""
        from gpt.cli.live import live_line

        return live_line(number + 1, self.jobs, name, self.time_left())

    def time_left(self) -> "TimeLeft":
        """How long the sweep still takes, by the files with which jobs end: jobs of other processes count as well."""
        from gpt.cli.live import TimeLeft

        results, errors = ({path.parent: path.stat().st_mtime for path in self.folder.glob(f"**/{name}")} for name in ENDINGS)
        trained = [folder for folder, written in results.items() if written >= self.started]
        failed = [folder for folder, written in errors.items() if written >= self.started]
        return TimeLeft(self.started, len(trained), self.jobs - len({*results, *failed}))

    def conclude(self) -> None:
        """Compare the jobs. Raises UserError if some have failed, and leaves nothing behind if none could begin."""
        from gpt.analysis.report import report_line, table_of

        (self.folder / "multirun.yaml").unlink(missing_ok=True)  # Hydra's; the runs have their own config.yaml
        errors = sorted(self.folder.glob("**/error.txt"))
        if self.created is not None and len(errors) == self.jobs and all(is_refusal(path) for path in errors):
            reason = read_text(errors[0]).strip()
            remove_refused(errors, self.created)
            raise UserError(reason)
        if any(self.folder.glob("**/result.json")):
            print(f"\n{table_of(self.folder)}\n{report_line(self.folder)}", flush=True)
        if errors:
            raise UserError(f"sweep = {self.folder}: {len(errors)} of {self.jobs} jobs failed; the same command tries them again")


def describe_sweep(what: str, folder: Path, varied: Mapping[str, Sequence[str]]) -> str:
    """What is printed before the first run: how many there are, where, and the values of each setting that varies."""
    lines = [f"  {name} = {shorten(', '.join(values), 100)}" for name, values in varied.items()]
    return "\n".join([f"{what} in {printable(str(folder))}", *lines])


def is_first_process() -> bool:
    """Whether this process is the one of a job's processes that writes."""
    from lightning.pytorch.utilities import rank_zero_only

    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def merge_params(config: DictConfig) -> list[Override]:
    """The overrides of a sweep: those that were typed, and what an experiment sweeps over if it was not typed.

    Hydra itself would sweep over both.
    """
    settings: Any = OmegaConf.to_container(config.hydra, resolve=False)  # overrides may hold interpolations
    typed, params = settings["overrides"]["task"], settings["sweeper"].get("params") or {}
    parse = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides
    for override in parse(typed):
        params.pop(override.key_or_group, None)
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweeper.params = params
    given = [*(f"{key}={value}" for key, value in params.items()), *typed]
    with explained(given):
        return list({override.get_key_element(): override for override in parse(given)}.values())  # the last one counts


def list_values(override: Override) -> list[str]:
    """The overrides that a sweeping one stands for. Raises UserError for an interval, which has no single values."""
    if not override.is_discrete_sweep():
        raise UserError(f"sweep = {shorten(override.input_line)}: not a list of values; write them as key=1,2,3")
    key = override.get_key_element()
    return [f"{key}={value}" for value in itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1)]


def check_jobs(config: DictConfig, jobs: Sequence[Sequence[str]]) -> None:
    """Raises UserError if Hydra cannot compose one of the jobs, or if none of them makes a run.

    A few combinations that make no model do not stop a sweep. They are reported when their turn comes.
    """
    from gpt.config import RunConfig

    loader, refusals = GlobalHydra.instance().config_loader(), []
    for job in jobs[:MOST_CHECKED]:
        with explained(job):
            job_config = loader.load_sweep_config(config, list(job))
            HydraConfig.instance().set_config(job_config)
            values = {str(key): plain(job_config, str(key)) for key in job_config if key not in ("hydra", "resume")}
        try:
            RunConfig.from_dict(values)
        except UserError as error:
            refusals.append(error)
    HydraConfig.instance().set_config(config)
    if len(refusals) == len(jobs):
        raise refusals[0]


def name_jobs(names: Sequence[str], varied: Sequence[Override], values: Sequence[Sequence[str]]) -> str:
    """The name of a job's folder, in which each job fills in its own values: n_head=${model.n_head},seed=${seed}.

    Paths are named by their ends. Values that make no good names, or the same one, are replaced by the number of the job.
    """
    parse = OverridesParser.create().parse_override
    choices, parts, length = HydraConfig.get().runtime.choices, [], 0
    for name, override, found in zip(names, varied, values, strict=True):
        key = override.key_or_group
        place = f"${{hydra:runtime.choices.{key}}}" if key in choices else f"${{{key}}}"
        shown = [text.partition("=")[2] for text in found]
        if not all(map(PLAIN.fullmatch, shown)):
            given = [parse(text).value() for text in found]
            shown = [name_place(value) for value in given if value is None or (isinstance(value, str) and "$" not in value)]
            if len(set(shown)) < len(found) or "" in shown:
                return "job=${hydra:job.num}"
            place = f"${{name_place:{place}}}"
        parts.append(f"{name}={place}")
        length += len(name) + 2 + max(map(len, shown))
    return ",".join(parts) or "job" if length <= 200 else "job=${hydra:job.num}"


def prefer(config: DictConfig, key: str, value: str) -> None:
    """Set one of Hydra's settings, for the sweep and each of its jobs, unless the user has set it."""
    overrides = config.hydra.overrides.hydra
    if not any(override.startswith(f"{key}=") for override in overrides):
        with read_write(config.hydra):
            OmegaConf.update(config, key, value)
            overrides.append(f"{key}={value!r}")


def describe_outcome(folder: Path, job_return: JobReturn, started: float) -> str:
    """What the line of a job says. For a failed job, error.txt keeps it, with the traceback unless it is a user's mistake."""
    if job_return.status == JobStatus.COMPLETED:
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
