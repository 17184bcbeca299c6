"""The run folder: how a run says what it was, and what came of it."""

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gpt.checkpoint import write_text


def describe(run_dir: Path, config_yaml: str, facts: dict[str, Any]) -> None:
    """Write config.yaml, with everything resolved, and run.json: the command, versions, machine and git commit, and `facts`."""
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
            "threads": torch.get_num_threads(),
            **facts,
        },
    )


def git(*arguments: str) -> str | None:
    """What git answers about the folder of this code; None where it is no repository, or git is missing."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
