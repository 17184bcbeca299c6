"""The run folder: what a run was, and what came of it."""

import contextlib
import json
import logging
import math
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import TensorBoardLogger

from gpt.callbacks import Samples, Throughput
from gpt.checkpoint import moved, read, write_text
from gpt.data import CharData
from gpt.logger import MetricsFile
from gpt.model import GPTConfig, parameter_count
from gpt.settings import UserError, decisive
from gpt.tokenizer import Tokenizer, restore

C = TypeVar("C", bound=L.Callback)
# What may differ when a run goes on. The last ones move it to other devices: the same batches, other last digits. Not from or
# to fsdp, though, for which the optimizer's state is kept in another order
HARMLESS = {"trainer.max_steps", "trainer.log_every_n_steps"}
HARMLESS |= {f"trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy")}


def load_text(path: Path, parse: Callable[[str], Any] = json.loads) -> dict[str, Any]:
    """One of a run's own files. Raises UserError if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, yaml.YAMLError):
        if isinstance(found := parse(path.read_text(encoding="utf-8")), dict):
            return found
    raise UserError(f"file = {path}: missing or damaged; restore it, or begin anew in another folder")


def own_settings(place: str, typed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run in a folder (`last`: the newest of outputs/ that has not ended), changed by `typed` ones.

    Raises UserError if there is no such run, or if what was typed is more than single values.
    """
    if place == "last":
        begun = sorted(Path("outputs").glob("**/run.json"), key=lambda path: path.stat().st_mtime)
        ended = ("result.json", "error.txt")
        folders = [path.parent for path in begun if not any((path.parent / name).exists() for name in ended)]
        if not folders:
            raise UserError("resume = last: no run under outputs/ that has not ended; name one: resume=outputs/RUN")
        place = str(folders[-1])
    folder = Path(place)
    if not (folder / "config.yaml").is_file():
        raise UserError(f"resume = {place}: no run there; give a run folder, such as outputs/RUN")
    settings = load_text(folder / "config.yaml", yaml.safe_load)
    settings = moved(settings, str(settings.get("run_dir")), str(folder.absolute()))
    for key, value in typed.items():
        group, *path, last = key.split(".") if "." in key else (key, key)
        node = settings.get(group) if "." in key else None
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise UserError(f"{key} = {value}: not with resume, which goes on with the run's own; leave it out")
        node[last] = value
    return settings


def check_room(run_dir: Path, config: GPTConfig, tokens: int, trainer: L.Trainer) -> None:
    """Raises UserError if a run on CPUs cannot fit into memory, or a new one onto the disk, for batches of so many tokens.

    Counted is what it takes at least: weights, gradients and one moment of them, and the inputs of the blocks' matrix products.
    """
    size, processes = parameter_count(config), trainer.world_size // trainer.num_nodes
    wide = 2 if trainer.precision == "bf16-mixed" else 4
    needed = 12 * size * processes + wide * 12 * config.n_layer * config.n_embd * tokens // trainer.num_nodes
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    if needed > there and trainer.strategy.root_device.type == "cpu":
        raise UserError(
            f"model, data.batch_size = {size:,} parameters, {tokens:,} tokens a batch: at least {needed / 2**30:,.0f} GiB of "
            f"memory, and there are {there / 2**30:,.0f}; choose less of either"
        )
    place = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    free, needed = shutil.disk_usage(place).free, 3 * 8 * size  # best, last, and the next one while it is written
    if needed > free and not (run_dir / "checkpoints").exists():
        raise UserError(
            f"run_dir = {run_dir}: {free:,} bytes free, and checkpoints take {needed:,}; make room, or choose another folder"
        )


def kept_tokenizer(run_dir: Path) -> Tokenizer | None:
    """The tokenizer of a run that goes on: another version of the library might find other pieces."""
    last = run_dir / "checkpoints" / "last.ckpt"
    return restore(read(last)["gpt"].get("tokenizer")) if last.exists() else None


def machine(trainer: L.Trainer) -> dict[str, Any]:
    """What the last digits of a result depend on, beside its settings."""
    return {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(trainer.strategy.root_device),
        "processes": trainer.world_size,
    }


def earlier(
    run_dir: Path, settings: Mapping[str, Any], text_sha256: str, trainer: L.Trainer
) -> tuple[dict[str, Any] | None, Path | None]:
    """What this run has left in its folder before: its result if it has ended, and a checkpoint from which it can go on.

    Raises UserError if the folder holds a run of other settings (but for those that are HARMLESS) or of another text. Raised
    `trainer.max_steps` make a run that has ended go on: from there its rate is that of a run of the new length.
    """
    if not (run_dir / "config.yaml").exists():
        return None, None
    held, asked = decisive(load_text(run_dir / "config.yaml", yaml.safe_load)), decisive(settings)
    sharded = {"trainer.strategy"} if "fsdp" in (held.get("trainer.strategy"), asked.get("trainer.strategy")) else set()
    keys = [key for key in dict.fromkeys([*asked, *held]) if key not in HARMLESS - sharded]
    differing = [key for key in keys if held.get(key) != asked.get(key)]
    if differing:
        values = [", ".join(str(values.get(key)) for key in differing) for values in (asked, held)]
        raise UserError(f"{', '.join(differing)} = {values[0]}: the run in {run_dir} has {values[1]}; choose another folder")
    run = load_text(run_dir / "run.json")
    if run.get("text_sha256") != text_sha256:
        raise UserError(f"data.path = {asked['data.path']}: not the text that the run in {run_dir} has seen; use that one")
    for what, now in machine(trainer).items() if trainer.is_global_zero else ():
        if (began := run.get("machine", {}).get(what)) != now:
            print(f"note: {what} {now} where the run began with {began}: its last digits may differ", file=sys.stderr)
    before, steps = held["trainer.max_steps"], asked["trainer.max_steps"]
    result, checkpoint = run_dir / "result.json", run_dir / "checkpoints" / "last.ckpt"
    if result.exists() and before > steps:
        raise UserError(f"trainer.max_steps = {steps}: the run in {run_dir} has had {before}; set more")
    return load_text(result) if result.exists() and before == steps else None, checkpoint if checkpoint.exists() else None


def keep_choices(run_dir: Path, trainer: dict[str, Any]) -> None:
    """Leave precision and compilation as they were chosen when a run began: another machine might choose otherwise."""
    if (run_dir / "config.yaml").exists():
        held = load_text(run_dir / "config.yaml", yaml.safe_load).get("trainer", {})
        for key, free in (("precision", "auto"), ("compile", None)):
            if trainer.get(key) == free and key in held:
                trainer[key] = held[key]


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; the lock goes with the process, however that ends.

    Raises UserError with the other one's number if there is one.
    """
    try:
        import fcntl
    except ImportError:  # Windows has none
        yield
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(f"run_dir = {run_dir}: process {file.read()} is at work there; wait, or stop it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def resume_logs(trainer: L.Trainer, checkpoint: Path) -> None:
    """Let the loggers go on where the checkpoint was; what was logged after it will be logged again."""
    content = read(checkpoint)
    if not content.get("optimizer_states"):
        raise UserError(f"resume = {checkpoint}: weights alone, no optimizer state; begin anew in another folder")
    step = content["global_step"]
    for logger in trainer.loggers:
        if isinstance(logger, MetricsFile):
            logger.resume(step)
        elif isinstance(logger, TensorBoardLogger):
            logger._kwargs["purge_step"] = step  # handed on to the SummaryWriter that it makes later


def describe(run_dir: Path, config_yaml: str, trainer: L.Trainer, data: CharData) -> None:
    """Write run.json: command, git commit, versions, machine, text, as they were when the run began; and config.yaml, with
    everything resolved, which says that there is a run."""
    if (run_dir / "run.json").exists():
        os.utime(run_dir / "run.json")  # by which resume=last finds the newest
    else:
        packages = ("torch", "lightning", "hydra-core", "omegaconf", "tensorboard", "numpy")
        write_json(
            run_dir / "run.json",
            {
                "command": sys.argv,
                "git_commit": git("rev-parse", "HEAD"),
                "git_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
                "python": platform.python_version(),
                "versions": {package: metadata.version(package) for package in packages},
                "platform": platform.platform(),
                "machine": machine(trainer),
                "text_sha256": data.sha256,
            },
        )
    (run_dir / "result.json").unlink(missing_ok=True)  # of fewer steps
    for half in run_dir.glob("**/.*.tmp-*"):  # what a killed process was writing
        half.unlink()
    write_text(run_dir / "config.yaml", config_yaml)


def collect(trainer: L.Trainer, parameters: int, seconds: float) -> tuple[dict[str, Any], str | None]:
    """The numbers of a run that has ended, and the last text that the model wrote (None if it was not asked to)."""
    best = next((c for c in trainer.checkpoint_callbacks if c.monitor == "val/loss"), None)
    throughput, samples = find_callback(trainer, Throughput), find_callback(trainer, Samples)
    result = {
        "best_val_loss": best.best_model_score.item() if best else None,
        "best_step": read(Path(best.best_model_path))["global_step"] if best else None,
        "final_val_loss": trainer.callback_metrics["val/loss"].item(),
        "final_bits_per_char": trainer.callback_metrics["val/bits_per_char"].item(),
        "step": trainer.global_step,
        "vocab_size": trainer.lightning_module.model.config.vocab_size,
        "parameters": parameters,
        "seconds": round(throughput.elapsed if throughput else seconds, 1),
        "chars_per_second": round(throughput.characters / throughput.seconds, 1) if throughput else None,
    }
    return result, samples.latest if samples else None


def save_result(run_dir: Path, result: dict[str, Any], sample: str | None) -> None:
    """Write result.json and sample.txt."""
    write_json(run_dir / "result.json", result)
    (run_dir / "error.txt").unlink(missing_ok=True)  # of an earlier try
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
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    advice = ("does not have many workers", "exists and is not empty", "smaller than the logging interval")
    resumable = "resuming from a checkpoint that ended before the epoch ended"  # ours is: batches know their step
    for message in (*advice, resumable, "isinstance.treespec, LeafSpec"):  # the last: Lightning 2.6.6 with torch 2.13
        warnings.filterwarnings("ignore", f".*{message}")


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")
