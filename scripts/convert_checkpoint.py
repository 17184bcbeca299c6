"""Bring checkpoints of the former format (.ckpt, format 4) over to safetensors, next to where they are:

python scripts/convert_checkpoint.py outputs/RUN
python scripts/convert_checkpoint.py model.ckpt

A run folder is converted whole, so that it can be resumed: its checkpoints, and the names in its config.yaml.
What was there stays. Convert only your own files: this is the one place of this project that unpickles.
"""

from pathlib import Path
from typing import Any

try:
    from gpt.errors import UserError, user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
import yaml

from gpt.cli.options import Parser

FORMER = 4
CALLBACKS = {
    "best": "BestCheckpoint",
    "last": "LastCheckpoint",
    "throughput": "Throughput",
    "samples": "Samples",
}
CALLBACKS |= {
    "attention": "AttentionMaps",
    "zero_shot": "ZeroShot",
    "early_stopping": "EarlyStopping",
    "ema": "EMA",
}
LOGGERS = {"csv": "MetricsFile", "tensorboard": "TensorBoard"}


def convert(path: Path) -> Path:
    """Write the checkpoint in `path` as safetensors next to it, and return where. Raises UserError."""
    import torch

    from gpt.checkpoint import FORMAT, write

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        metadata = content.pop("gpt")
    except Exception as error:  # there is an exception of another kind for each kind of damage
        raise UserError(
            f"checkpoint = {path}: not one of the former format ({type(error).__name__})"
        ) from None
    if metadata["format"] != FORMER:
        raise UserError(f"checkpoint = {path}: its format is {metadata['format']}, not {FORMER}")
    metadata |= {
        "format": FORMAT,
        "step": content.get("global_step", 0),
        "config": with_classes(metadata["config"]),
    }
    weights = {name.removeprefix("model."): tensor for name, tensor in content.pop("state_dict").items()}
    for key in ("epoch", "pytorch-lightning_version", "loops", "lr_schedulers"):
        content.pop(key, None)  # they follow from the step
    if state := content.get("callbacks", {}).get("early_stopping"):
        lowest = torch.tensor(
            float("inf") if state["lowest"] is None else state["lowest"], dtype=torch.float64
        )
        state = {"wait_count": state["validations"], "stopped_epoch": 0, "best_score": lowest}
        content["callbacks"]["early_stopping"] = state | {
            "patience": metadata["config"]["callbacks"]["early_stopping"]["patience"]
        }
    if "current_model_state" in content:  # averaged weights, which every step has updated
        content["callbacks"]["ema"] = {"latest_update_step": content["global_step"]}
    is_last = path.stem == "last"
    target = path.with_suffix(".safetensors")
    write(target, {"gpt": metadata, "state_dict": weights} | (content if is_last else {}))
    return target


def with_classes(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration whose callbacks and loggers name their classes, where they were chosen by name."""
    config = dict(config)
    for group, classes in (("callbacks", CALLBACKS), ("logger", LOGGERS)):
        nodes = {
            name: {"_target_": f"gpt.callbacks.{classes[name]}"} | node
            for name, node in config[group].items()
        }
        config[group] = {
            name: node | ({"save_dir": None} if group == "logger" else {}) for name, node in nodes.items()
        }
    return config


def convert_run(folder: Path) -> list[Path]:
    """Convert a run folder: its checkpoints, and then its config.yaml. Returns what was written."""
    from gpt.files import write_text

    written = [convert(path) for path in sorted((folder / "checkpoints").glob("*.ckpt"))]
    path = folder / "config.yaml"
    if path.exists():
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not any("_target_" in node for node in config["callbacks"].values()):
            write_text(path, yaml.safe_dump(with_classes(config), sort_keys=False, allow_unicode=True))
            written.append(path)
    if not written:
        raise UserError(f"folder = {folder}: no run of the former format; give a run folder or a .ckpt file")
    return written


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("places", nargs="+", type=Path, metavar="RUN", help="a run folder or a .ckpt file")
    for place in parser.parse_args(arguments).places:
        for path in convert_run(place) if place.is_dir() else [convert(place)]:
            print(path)


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
