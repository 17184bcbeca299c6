"""The run folder: what a run was, and what came of it."""

import json
import logging
import platform
import subprocess
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from gpt.callbacks import Samples, Throughput
from gpt.checkpoint import read, write_text
from gpt.data import CharData
from gpt.logger import MetricsFile
from gpt.settings import UserError, decisive

C = TypeVar("C", bound=L.Callback)


def earlier(run_dir: Path, config_yaml: str) -> tuple[dict[str, Any] | None, Path | None]:
    """What this very run has left in its folder before: its result if it has ended, and a checkpoint from which it can go on.

    Raises UserError if the folder holds a run of other settings.
    """
    config, result, checkpoint = (run_dir / name for name in ("config.yaml", "result.json", "checkpoints/last.ckpt"))
    if not config.exists():
        return None, None
    held, asked = (decisive(yaml.safe_load(text)) for text in (config.read_text(encoding="utf-8"), config_yaml))
    for key in [*asked, *held]:
        if held.get(key) != asked.get(key):
            raise UserError(f"{key} = {asked.get(key)}: the run in {run_dir} has {held.get(key)}; choose another folder")
    done = json.loads(result.read_text(encoding="utf-8")) if result.exists() else None
    return done, checkpoint if checkpoint.exists() else None


def resume_logs(trainer: L.Trainer, checkpoint: Path) -> None:
    """Let the loggers go on where the checkpoint was; what was logged after it will be logged again."""
    step = read(checkpoint)["global_step"]
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.resume(step)
        elif isinstance(logger, TensorBoardLogger):
            logger._kwargs["purge_step"] = step  # handed on to the SummaryWriter that it makes later


def describe(run_dir: Path, config_yaml: str, trainer: L.Trainer, data: CharData) -> None:
    """Write config.yaml, with everything resolved, and run.json: command, git commit, versions, machine, text."""
    packages = ("torch", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")
    write_text(run_dir / "config.yaml", config_yaml)
    write_json(
        run_dir / "run.json",
        {
            "command": sys.argv,
            "git_commit": git("rev-parse", "HEAD"),
            "git_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
            "python": platform.python_version(),
            "versions": {package: metadata.version(package) for package in packages},
            "platform": platform.platform(),
            "device": str(trainer.strategy.root_device),
            "threads": torch.get_num_threads(),
            "text_sha256": data.sha256,
        },
    )


def collect(trainer: L.Trainer, parameters: int, seconds: float) -> tuple[dict[str, Any], str | None]:
    """The numbers of a run that has ended, and the last text that the model wrote (None if it was not asked to)."""
    best = next((c for c in trainer.checkpoint_callbacks if c.monitor == "val/loss"), None)
    throughput, samples = find_callback(trainer, Throughput), find_callback(trainer, Samples)
    result = {
        "best_val_loss": best.best_model_score.item() if best else None,
        "best_step": read(Path(best.best_model_path))["global_step"] if best else None,
        "final_val_loss": trainer.callback_metrics["val/loss"].item(),
        "step": trainer.global_step,
        "parameters": parameters,
        "seconds": round(throughput.elapsed if throughput else seconds, 1),
        "chars_per_second": round(throughput.characters / throughput.seconds, 1) if throughput else None,
    }
    return result, samples.latest if samples else None


def save_result(run_dir: Path, result: dict[str, Any], sample: str | None) -> None:
    """Write result.json and sample.txt."""
    write_json(run_dir / "result.json", result)
    if sample is not None:
        write_text(run_dir / "sample.txt", sample)


def find_callback(trainer: L.Trainer, kind: type[C]) -> C | None:
    """The first callback of a kind; None if the configuration left it out."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)


def git(*arguments: str) -> str | None:
    """What git answers about the folder of this code; None where that is no repository, or git is missing."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def quieten() -> None:
    """Leave out Lightning's advertising, and advice on what is meant here: no worker processes, very short first runs."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    advice = ("does not have many workers", "exists and is not empty", "smaller than the logging interval")
    resumable = "resuming from a checkpoint that ended before the epoch ended"  # ours is: batches know their step
    for message in (*advice, resumable, "isinstance.treespec, LeafSpec"):  # the last: Lightning 2.6.6 with torch 2.13
        warnings.filterwarnings("ignore", f".*{message}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
