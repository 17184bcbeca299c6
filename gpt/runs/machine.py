"""What a run's results depend on beside its settings: machine, versions, commit. It is written into run.json."""

import logging
import os
import platform
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
import torch

PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")


def describe_machine(trainer: L.Trainer) -> dict[str, Any]:
    """What the last digits of a result depend on."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(trainer.strategy.root_device),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "processes": trainer.world_size,
    }


def describe_origin(
    trainer: L.Trainer, command: Sequence[str], overrides: Mapping[str, Any], text_sha256: str
) -> dict[str, Any]:
    """The content of run.json: how, where and from what a run began."""
    return {
        "command": list(command),
        "overrides": dict(overrides),
        "git_commit": ask_git("rev-parse", "HEAD"),
        "git_changes": bool(ask_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "machine": describe_machine(trainer),
        "text_sha256": text_sha256,
    }


def is_first_process() -> bool:
    """Whether this process is the one of several that writes and speaks, by what torchrun, Slurm or Lightning have set."""
    ranks = [os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")]
    return next((int(rank) for rank in ranks if rank is not None), 0) == 0


def ask_git(*arguments: str) -> str | None:
    """What git answers about the folder of this code. None if that is no repository, or if git is missing."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def silence_lightning() -> None:
    """Leave out Lightning's advertising, and its and PyTorch's advice against what is done here on purpose."""
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    for message in (
        "does not have many workers",  # batches are views of a text in memory: a worker process would slow them down
        "exists and is not empty",  # a run that goes on saves into the folder that it had
        "smaller than the logging interval",  # short trial runs have few steps
        "resuming from a checkpoint that ended before the epoch ended",  # our batches know their step
        "isinstance.treespec, LeafSpec",  # Lightning 2.6.6 uses what torch 2.13 has deprecated
        "Mismatch dtype between input and weight",  # autocast gives bfloat16 to RMS norm, whose weights are float32
    ):
        warnings.filterwarnings("ignore", f".*{message}")
