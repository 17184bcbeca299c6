"""Lightning's Trainer from `conf/trainer`: checked, counted in optimizer steps, and one epoch long."""

import ctypes
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from gpt.callbacks import ValidateAtEnd
from gpt.checkpoint import AtomicCheckpointIO
from gpt.settings import UserError, build, did_you_mean

PRECISIONS = ("auto", "32", "32-true", "bf16-mixed")  # float16 needs a scaled loss; all in bfloat16, a loss has three digits
PASSED_ON = ("num_nodes", "deterministic", "benchmark", "detect_anomaly", "profiler", "max_time")
STRATEGIES = {
    "auto": lambda: "auto",
    "ddp": lambda: DDPStrategy(forward_sync_buffers=False, gradient_as_bucket_view=True),  # buffers are constants
    "fsdp": lambda: ModelParallelStrategy(save_distributed_checkpoint=False),  # with ShardedGPTModule
}


@dataclass(frozen=True)
class TrainerConfig:
    """What every `conf/trainer` file says; it may add what is PASSED_ON to `lightning.Trainer`. Raises ValueError."""

    accelerator: str
    devices: str
    precision: str
    compile: bool | None  # None, like "auto" above: whatever `choose` finds best for the machine and the run
    max_steps: int
    val_check_interval: int  # in optimizer steps, as everything here
    log_every_n_steps: int
    gradient_clip_val: float  # 0: off
    accumulate_grad_batches: int
    strategy: str  # auto for one device, ddp or fsdp for several

    def __post_init__(self) -> None:
        for field in ("max_steps", "val_check_interval", "log_every_n_steps", "accumulate_grad_batches"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} = {getattr(self, field)}: must be at least 1; set a positive number")
        if self.gradient_clip_val < 0:
            raise ValueError(f"gradient_clip_val = {self.gradient_clip_val}: must not be negative; set 0 for no clipping")
        for field, choices in (("precision", PRECISIONS), ("strategy", STRATEGIES)):
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} = {getattr(self, field)}: not supported; choose one of {', '.join(choices)}")


def split_settings(values: Mapping[str, Any]) -> tuple[TrainerConfig, dict[str, Any]]:
    """Our settings, checked, and those for `lightning.Trainer`. Raises UserError for a key that is neither."""
    ours = {field.name for field in fields(TrainerConfig)}
    others = {key: value for key, value in values.items() if key not in ours}
    known = [f"trainer.{key}" for key in (*ours, *PASSED_ON)]
    for key, value in others.items():
        if f"trainer.{key}" not in known:
            raise UserError(f"trainer.{key} = {value}: no such setting; {did_you_mean(f'trainer.{key}', known)}")
    return build(TrainerConfig, {key: value for key, value in values.items() if key in ours}, "trainer"), others


def choose(values: Mapping[str, Any], flops: float) -> tuple[dict[str, Any], str]:
    """The settings with precision and compilation decided, for batches of so many operations, and a line that says why.

    bfloat16 only where the hardware computes it: other CPUs emulate it at a hundredth of their float32 speed. Compilation
    only where it repays the minute or so that it takes: not in float32 on a CPU (2 % with AVX2; dev/LOG.md, 2026-11-22).
    """
    config, _ = split_settings(values)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    cpu = config.accelerator == "cpu" or (config.accelerator == "auto" and found is None)
    cuda = not cpu and found is not None and found.type == "cuda"
    run = flops * config.max_steps * config.accumulate_grad_batches
    precision, compiled, reasons = config.precision, config.compile, []
    if precision == "auto":
        able = torch.cpu.get_capabilities() if cpu else {}
        bf16 = able.get("avx512_bf16") or able.get("amx_bf16") or (cuda and torch.cuda.is_bf16_supported(False))
        precision = "bf16-mixed" if bf16 else "32-true"
        reasons.append(f"precision {precision}: {'' if bf16 else 'no '}bfloat16 in hardware")
    if compiled is None:
        obstacles = {
            "gains nothing in float32 on a CPU": cpu and precision != "bf16-mixed",
            "not tried on this device": not (cpu or cuda),
            "no C++ compiler": cpu and not shutil.which(os.environ.get("CXX", "c++")),
            "too short a run to repay it": run < (1e15 if cuda else 3e13),  # minutes of training
        }
        obstacle = next((reason for reason, holds in obstacles.items() if holds), None)
        compiled = obstacle is None
        reasons.append("compiled: a long run" if compiled else f"not compiled: {obstacle}")
    if config.strategy == "fsdp":
        reasons.append("no samples and pictures: with fsdp, no process has the whole model")
    return {**values, "precision": precision, "compile": compiled}, "; ".join(reasons)


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
        strategy=STRATEGIES[config.strategy](),
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
        trainer = L.Trainer(**(settings | others))
    except (MisconfigurationException, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".;")
        given = f"trainer.accelerator, devices = {config.accelerator}, {config.devices}"
        raise UserError(f"{given}: {reason}; try trainer=cpu trainer.devices=1") from None
    cores = os.cpu_count() or 1
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > cores:
        raise UserError(f"trainer.devices = {trainer.num_devices}: more processes than the {cores} cores here; set fewer")
    return trainer


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
