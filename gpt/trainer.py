"""Lightning's Trainer from `conf/trainer`: checked, counted in optimizer steps, and one epoch long."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger

from gpt.callbacks import ValidateAtEnd
from gpt.checkpoint import AtomicCheckpointIO
from gpt.settings import UserError, build, did_you_mean

PRECISIONS = ("32", "32-true", "bf16-mixed")  # float16 needs a scaled loss; all in bfloat16, a loss has three digits
PASSED_ON = ("strategy", "num_nodes", "deterministic", "benchmark", "detect_anomaly", "profiler", "max_time")


@dataclass(frozen=True)
class TrainerConfig:
    """What every `conf/trainer` file says; it may add what is PASSED_ON to `lightning.Trainer`. Raises ValueError."""

    accelerator: str
    devices: str
    precision: str
    compile: bool
    max_steps: int
    val_check_interval: int  # in optimizer steps, as everything here
    log_every_n_steps: int
    gradient_clip_val: float  # 0: off
    accumulate_grad_batches: int

    def __post_init__(self) -> None:
        for field in ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} = {getattr(self, field)}: must be at least 1; set a positive number")
        if self.gradient_clip_val < 0:
            raise ValueError(f"gradient_clip_val = {self.gradient_clip_val}: must not be negative; set 0 for no clipping")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision = {self.precision}: not supported; choose one of {', '.join(PRECISIONS)}")


def split_settings(values: Mapping[str, Any]) -> tuple[TrainerConfig, dict[str, Any]]:
    """Our settings, checked, and those for `lightning.Trainer`. Raises UserError for a key that is neither."""
    ours = {field.name for field in fields(TrainerConfig)}
    others = {key: value for key, value in values.items() if key not in ours}
    known = [f"trainer.{key}" for key in (*ours, *PASSED_ON)]
    for key, value in others.items():
        if f"trainer.{key}" not in known:
            raise UserError(f"trainer.{key} = {value}: no such setting; {did_you_mean(f'trainer.{key}', known)}")
    return build(TrainerConfig, {key: value for key, value in values.items() if key in ours}, "trainer"), others


def build_trainer(values: Mapping[str, Any], run_dir: Path, callbacks: list[Callback], loggers: list[Logger]) -> L.Trainer:
    """A Trainer for one run of max_steps steps, as one epoch. Raises UserError for settings that Lightning refuses."""
    config, others = split_settings(values)
    batches = config.max_steps * config.accumulate_grad_batches
    settings = dict(
        accelerator=config.accelerator,
        devices=int(config.devices) if config.devices.isdigit() else config.devices,
        precision=config.precision,
        max_steps=config.max_steps,
        max_epochs=-1,
        val_check_interval=min(config.val_check_interval * config.accumulate_grad_batches, batches),
        log_every_n_steps=config.log_every_n_steps,
        gradient_clip_val=config.gradient_clip_val or None,
        accumulate_grad_batches=config.accumulate_grad_batches,
        default_root_dir=run_dir,
        callbacks=[*callbacks, ValidateAtEnd()],
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,  # our batches know their rank
        num_sanity_val_steps=0,
        enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),  # no other than ours
        enable_model_summary=False,
    )
    try:
        return L.Trainer(**(settings | others))
    except (MisconfigurationException, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".;")
        given = f"trainer.accelerator, devices = {config.accelerator}, {config.devices}"
        raise UserError(f"{given}: {reason}; try trainer=cpu trainer.devices=1") from None


def keep_freed_memory() -> None:
    """Tell glibc to keep large blocks for reuse: by default each activation is mapped from the kernel, page by page, anew.

    Training at 64 x 256 characters (experiment=notebook) takes 2.8 s a step with it and 7.4 s without, on two cores of an
    AMD EPYC 7003 (2026-11-22). Does nothing where the C library is another one.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    m_mmap_threshold, m_trim_threshold, largest = -3, -1, 2**31 - 1
    mallopt(m_mmap_threshold, largest)
    mallopt(m_trim_threshold, largest)
