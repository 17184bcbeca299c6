"""What goes on around the jobs of a sweep: a folder that the same command finds again, short names, a line for each job."""

import hashlib
import json
import math
import time
import traceback
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from gpt.settings import UserError


class Sweep(Callback):
    """Names a sweep's folder after what varies and a hash of all that it is, and each job's after its values.

    So the same command continues a sweep. A job that fails leaves error.txt in its folder, and the others go on.
    """

    folder: Path | None = None  # of the sweep that this process has started
    jobs = 0

    def __init__(self) -> None:
        self.started = 0.0

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            self.begin(config)
        except Exception as error:  # Hydra would warn of it, and go on with a sweep that has no folder
            given = " ".join(config.hydra.overrides.task)
            raise SystemExit(2) from UserError(f"sweep = {given}: {' '.join(str(error).split())}; see --help")

    def begin(self, config: DictConfig) -> None:
        HydraConfig.instance().set_config(config)
        typed, params = list(config.hydra.overrides.task), dict(config.hydra.sweeper.get("params") or {})
        parse = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides
        for override in parse(typed):
            params.pop(override.key_or_group, None)  # what is typed replaces what an experiment sweeps over
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.sweeper.params = params
        given = [*(f"{key}={value}" for key, value in params.items()), *typed]
        varied = [override for override in parse(given) if override.is_sweep_override()]
        keys = [override.key_or_group for override in varied]
        names = short_names(keys)
        self.jobs = math.prod(sum(1 for _ in override.sweep_string_iterator()) for override in varied)
        own = OmegaConf.masked_copy(config, [key for key in config if key not in ("hydra", "run_dir")])
        digest = hashlib.sha256("\n".join([OmegaConf.to_yaml(own), *sorted(given)]).encode()).hexdigest()[:8]
        folder = "_".join([config.name, *(name for name in names if name != "seed")])
        prefer(config, "hydra.sweep.dir", f"outputs/sweeps/{folder[:80]}_{digest}")
        prefer(config, "hydra.sweep.subdir", ",".join(map(value_of, names, varied)) or "job")
        constant = [override.key_or_group for override in parse(given) if override.key_or_group not in keys]
        prefer(config, "hydra.job.config.override_dirname.exclude_keys", constant)  # tells the jobs what does not vary
        Sweep.folder, Sweep.jobs = Path(config.hydra.sweep.dir), self.jobs

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        self.started = time.time()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        from lightning.pytorch.utilities import rank_zero_only

        from gpt.checkpoint import write_text

        if rank_zero_only.rank:
            return
        folder = Path(config.hydra.runtime.output_dir)
        if job_return.status == JobStatus.COMPLETED:
            (folder / "error.txt").unlink(missing_ok=True)
            path = folder / "result.json"
            result = json.loads(path.read_text(encoding="utf-8"))
            before = " (done before)" if path.stat().st_mtime < self.started else ""
            said = f"val loss {result['best_val_loss'] or result['final_val_loss']:.4f}, {result['seconds']:.0f} s{before}"
        else:
            error = job_return._return_value
            said = f"failed: {error if isinstance(error, UserError) else f'{type(error).__name__}: {error}'}"
            trace = "" if isinstance(error, UserError) else "\n" + "".join(traceback.format_exception(error))
            write_text(folder / "error.txt", f"{said.removeprefix('failed: ')}\n{trace}")
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None  # dealt with: Hydra has nothing to add
        print(f"{config.hydra.job.num + 1} of {self.jobs}  {folder.name}: {said}", flush=True)

    @classmethod
    def conclude(cls) -> None:
        """Compare the jobs. Raises UserError if some have failed."""
        from compare import compare

        failed = len(list(cls.folder.glob("**/error.txt")))
        if len(list(cls.folder.glob("**/result.json"))):
            print(f"\n{compare(cls.folder)}", flush=True)
        if failed:
            raise UserError(f"sweep = {cls.folder}: {failed} of {cls.jobs} jobs failed; the same command tries them again")


def short_names(keys: list[str]) -> list[str]:
    """n_head for model.n_head, unless another key ends so too."""
    last = [key.replace("/", ".").rpartition(".")[2] for key in keys]
    return [name if last.count(name) == 1 else key.replace("/", ".") for name, key in zip(last, keys, strict=True)]


def value_of(name: str, override: Override) -> str:
    """n_head=${model.n_head}, which each job resolves for itself."""
    key = override.key_or_group
    return f"{name}=${{hydra:runtime.choices.{key}}}" if is_group(key) else f"{name}=${{{key}}}"


def is_group(key: str) -> bool:
    return key in HydraConfig.get().runtime.choices


def prefer(config: DictConfig, key: str, value: str | list[str]) -> None:
    """Set one of Hydra's settings, for the sweep and each of its jobs, unless the user has."""
    overrides = config.hydra.overrides.hydra
    if not any(override.startswith(f"{key}=") for override in overrides):
        with read_write(config.hydra):
            OmegaConf.update(config, key, value)
            overrides.append(f"{key}={value!r}")
