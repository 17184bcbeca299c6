"""Print the exact loss of a trained model on all of the validation split and all of the training split:

python scripts/evaluate.py outputs/RUN
python scripts/evaluate.py outputs/RUN outputs/OTHER    the average of their probabilities
"""

import argparse
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpt.cli.options import Parser, add_checkpoint, whole_number
from gpt.errors import UserError, build, shorten, user_errors

if TYPE_CHECKING:
    from gpt.data import DataConfig
    from gpt.tokenizer import Tokenizer


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_checkpoint(parser, several=True)
    parser.add_argument(
        "--data", metavar="FILE", help="another text, split like the run's own, which is the default"
    )
    windows = "cut the text into windows of so many tokens, to compare models of other contexts; default: the model's context"
    parser.add_argument("--context-length", type=whole_number(1), metavar="T", help=windows)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, with every digit, in place of the table"
    )
    return parser.parse_args(arguments)


def evaluate(
    *places: str, path: str | None = None, context_length: int | None = None
) -> dict[str, dict[str, Any]]:
    """The losses of the checkpoint that a place means, or of the average of several, on the run's text or on the one at `path`.

    Each split is cut into windows of `context_length` tokens, by default as many as the model sees.
    Returns {"val": {"loss": ..., "bits_per_char": ..., "bits_per_byte": ..., "unit": ...}, "train": ...}. Losses are in nats
    per unit (character, byte or token). They are computed in float32, as a run validates, so they are the same numbers.
    A terminal shows the progress on stderr.
    """
    import lightning as L
    from tqdm import tqdm

    from gpt.cli.runs import load_models
    from gpt.data import TextData
    from gpt.machine import keep_freed_memory
    from gpt.module import GPTModule
    from gpt.runs.machine import silence_lightning

    if path is not None and not path.strip():
        raise UserError("--data = (empty): not a text; give a file, or leave it out for the run's own text")
    silence_lightning()
    keep_freed_memory()
    model, tokenizer, metadata = load_models(places)
    config = data_config(metadata, path)
    if path is None and not is_text(config, tokenizer, metadata["text_sha256"]):
        raise UserError(
            f"data.path = {config.path}: no longer the text that this model has seen; give it with --data FILE"
        )
    length = model.config.context_length
    if context_length is not None and context_length > length:
        raise UserError(
            f"--context-length = {context_length}: the model sees at most {length} tokens; give no more"
        )
    data = TextData(config, context_length or length, seed=0, tokenizer=tokenizer)
    trainer = L.Trainer(
        accelerator="cpu" if trained_on_cpu(metadata) else "auto",
        devices=1,
        precision="32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = GPTModule(model, lengths=tokenizer.lengths)
    losses: dict[str, dict[str, Any]] = {}
    for split, ids in (("val", data.val_ids), ("train", data.train_ids)):
        shown = {
            "bar_format": "{desc} {n:,}/{total:,} {bar} ETA {remaining}",
            "dynamic_ncols": True,
            "leave": False,
        }
        with tqdm(
            data.exact(ids), split, disable=None, **shown
        ) as batches:  # None: there is no bar without a terminal
            (metrics,) = trainer.validate(module, batches, verbose=False)
        losses[split] = {name.removeprefix("val/"): value for name, value in metrics.items()}
        losses[split]["unit"] = tokenizer.loss_unit
    return losses


def data_config(metadata: dict[str, Any], path: str | None) -> "DataConfig":
    """Where the text is and how it is split. The folder that may be written to is never the one that a checkpoint names."""
    from gpt.data import DataConfig

    stored = metadata["config"].get("data")
    if not isinstance(stored, dict):
        raise UserError(
            f"checkpoint = (given): its metadata has no data ({shorten(stored)}); use another checkpoint"
        )
    return build(DataConfig, stored | {"folder": "data"} | ({} if path is None else {"path": path}), "data")


def is_text(config: "DataConfig", tokenizer: "Tokenizer", sha256: str) -> bool:
    """Whether the text has this SHA-256. It is checked before encoding, whose errors show a part of the text."""
    from gpt.data import open_text

    return open_text(config, raw=tokenizer.reads_bytes).sha256 == sha256


def trained_on_cpu(metadata: dict[str, Any]) -> bool:
    """Whether the run chose the CPU: another device would round differently."""
    trainer = metadata["config"].get("trainer")
    return isinstance(trainer, dict) and trainer.get("accelerator") == "cpu"


def tabulate(losses: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each split. A column that would repeat the previous one, as for a text of ASCII alone, is left out."""
    columns: dict[str, list[str]] = {}
    for split in losses.values():
        loss = split["loss"]
        numbers = {
            f"nats per {split['unit']}": loss,
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits per character": split["bits_per_char"],
            "bits per byte": split["bits_per_byte"],
        }
        for title, number in numbers.items():
            columns.setdefault(title, []).append(f"{number:.4f}")
    if columns["bits per byte"] == columns["bits per character"]:
        del columns["bits per byte"]
    rows = zip(["", *losses], *([title, *cells] for title, cells in columns.items()), strict=True)
    widths = [len(title) for title in columns]
    lines = []
    for name, *cells in rows:
        lines.append(
            f"{name:5}" + "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    losses = evaluate(*options.checkpoint or [], path=options.data, context_length=options.context_length)
    print(json.dumps(losses) if options.json else tabulate(losses))


if __name__ == "__main__":
    with user_errors():
        main()
