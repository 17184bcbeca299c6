"""What the machine offers, what is chosen for it, and what a run notes of it."""

import contextlib
import ctypes
import logging
import os
import platform
import shutil
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

if TYPE_CHECKING:
    import lightning as L

# Floating-point operations of a run that is worth compiling: minutes of training, as compiling takes one
WORTH_COMPILING = {"cuda": 1e15, "cpu": 3e13}
PACKAGES = "torch", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy"  # a run notes versions


def device_type(accelerator: str) -> str:
    """The kind of device that Lightning will choose for an accelerator: "cpu", "cuda", "mps", ..."""
    available = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if accelerator == "cpu" or available is None else available.type


def choose_precision(device: str) -> tuple[Literal["32-true", "bf16-mixed"], str]:
    """The training precision for `precision=auto`, and why.

    bfloat16 is chosen only where the hardware computes it: other CPUs emulate it at a hundredth of the speed.
    """
    capabilities = torch.cpu.get_capabilities() if device == "cpu" else {}
    has_bfloat16 = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    if has_bfloat16 or (device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)):
        return "bf16-mixed", "precision bf16-mixed: the hardware computes bfloat16"
    return "32-true", "precision 32-true: no bfloat16 in hardware"


def choose_compilation(device: str, precision: str, flops: float, has_masks: bool) -> tuple[bool, str]:
    """Whether torch.compile, which takes about a minute, pays for a run of so many operations, and why.

    `has_masks` says whether the model has many masks of one byte, which compiled code reads slowly on a CPU:
    those of ReLU, or of dropout on attention weights. In float32, compiling gains 2 % there (AVX2,
    docs/log.md, 2026-11-22).
    """
    cpu = device == "cpu"
    masks = "masks of ReLU or of dropout on attention weights are slow in compiled code on a CPU"
    obstacles = {
        "it gains nothing in float32 on a CPU": cpu and precision != "bf16-mixed",
        masks: cpu and has_masks,
        "it was not tried on this device": device not in WORTH_COMPILING,
        f"there is no {'C' if device == 'cuda' else 'C++'} compiler": not has_compiler(device),
        "the run is too short to repay it": flops < WORTH_COMPILING.get(device, 0),
    }
    holding = [obstacle for obstacle, holds in obstacles.items() if holds]
    return (False, f"not compiled: {holding[0]}") if holding else (True, "compiled: the run is long")


def has_compiler(device: str) -> bool:
    """Whether torch.compile finds its compiler: what CC or CXX names, or the usual ones of the system."""
    c_plus_plus = "clang++" if sys.platform == "darwin" else "g++"
    variable, usual = ("CC", ["gcc", "clang"]) if device == "cuda" else ("CXX", [c_plus_plus])
    return any(map(shutil.which, [os.environ[variable]] if variable in os.environ else usual))


def waiting_seconds() -> float:
    """How long the first thread of this process has waited for a core, because other work had it.

    Only Linux tells. Elsewhere it is 0.
    """
    with contextlib.suppress(OSError):
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def keep_freed_memory() -> None:
    """Tell glibc, where there is one, to keep large blocks for reuse rather than map each activation again.

    Training at 64 x 256 characters (experiment=notebook) takes 2.8 s a step with it and 7.4 s without, on two
    cores of an AMD EPYC 7003 (2026-11-22).
    """
    with contextlib.suppress(OSError, AttributeError):
        for threshold in (-3, -1):  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD
            ctypes.CDLL("libc.so.6").mallopt(threshold, 2**31 - 1)


def leave_other_processes() -> None:
    """Without it, a thread of Gloo sometimes aborts a process that has ended well."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def describe_machine(trainer: "L.Trainer") -> dict[str, Any]:
    """What the last digits of a result depend on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(trainer.strategy.root_device),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "processes": trainer.world_size,
    }


def describe_origin(trainer: "L.Trainer") -> dict[str, Any]:
    """With what a run began: commit, versions and machine."""
    return {
        "git_commit": ask_git("rev-parse", "HEAD"),
        "git_changes": bool(ask_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "machine": describe_machine(trainer),
    }


def ask_git(*arguments: str) -> str | None:
    """What git answers about the folder of this code. None if that is no repository, or if git is missing."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def is_first_process() -> bool:
    """Whether this one of several processes writes and speaks, by what torchrun, Slurm or Lightning set."""
    ranks = [os.environ[name] for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID") if name in os.environ]
    return not ranks or int(ranks[0]) == 0


def silence_lightning() -> None:
    """Leave out Lightning's advertising, and advice (also PyTorch's) against what is done here on purpose."""
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    for message in (
        "does not have many workers",  # batches are views of a text in memory: a worker would slow them down
        "exists and is not empty",  # a run that continues saves into the folder that it had
        "smaller than the logging interval",  # short runs have few steps
        "resuming from a checkpoint that ended before the epoch ended",  # our batches know their step
        "isinstance.treespec, LeafSpec",  # Lightning 2.6.6 uses what torch 2.13 has deprecated
        "Mismatch dtype between input and weight",  # autocast gives bfloat16 to RMS norm's float32 weights
    ):
        warnings.filterwarnings("ignore", f".*{message}")
