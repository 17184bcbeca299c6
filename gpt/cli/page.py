"""What `scripts/export_html.py` writes: the page of a trained model, with what is known about it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpt.checkpoint import load
from gpt.cli.records import read_about, read_run, typed_command
from gpt.config import ModelConfig
from gpt.files import write_text
from gpt.interop.page import render
from gpt.text import SHA256
from gpt.tokenizer import Tokenizer

PRIVATE = ("hydra.", "data.path", "data.folder", "init=")  # settings that name folders of one machine


def export_page(checkpoint: Path, target: Path, title: str | None, prompt: str | None) -> None:
    """Write the page of a checkpoint. Raises UserError for one that cannot be read, and for a model that no page can hold."""
    model, tokenizer, metadata = load(checkpoint)
    if prompt is not None:
        tokenizer.encode(prompt)  # it would be refused in the page, where nobody can mend the file
    title = title or f"Written by a GPT of {in_words(model.config.parameter_count())} parameters"
    facts = describe(checkpoint, model.config, tokenizer, metadata)
    write_text(
        target,
        render(model, tokenizer, title, facts, default_prompt(tokenizer) if prompt is None else prompt),
    )


def describe(
    checkpoint: Path, config: ModelConfig, tokenizer: Tokenizer, metadata: Mapping[str, Any]
) -> dict[str, str]:
    """What the page says about the model, as far as the checkpoint and the run's folder tell."""
    facts = {
        "parameters": f"{config.parameter_count():,}",
        "layers": str(config.n_layer),
        "heads": str(config.n_head),
        "context": f"{config.context_length} {tokenizer.unit}",
        "trained on": "Tiny Shakespeare" if metadata["text_sha256"] == SHA256 else "another text",
        "date": datetime.fromtimestamp(checkpoint.stat().st_mtime, UTC).date().isoformat(),
    }
    loss, folder = None, checkpoint.parents[1] if len(checkpoint.parents) > 1 else checkpoint.parent
    command = typed_command(read_about(folder), PRIVATE)
    if (record := read_run(folder, folder.name)).result is not None:
        loss = record.result.best_val_loss
    if packed := metadata.get("pretrained"):
        loss, command, facts["date"] = (
            packed["losses_as_stored"]["val_loss"],
            packed["command"],
            packed["date"],
        )
    if loss is not None:
        facts["validation loss"] = f"{loss:.4f} nats per {tokenizer.loss_unit}"
    return facts | ({"trained by": command} if command else {})


def default_prompt(tokenizer: Tokenizer) -> str:
    """The name of a speaker, if the text can have one."""
    return "ROMEO:\n" if all(map(tokenizer.knows, "ROMEO:\n")) else tokenizer.default_prompt


def in_words(number: int) -> str:
    """A number as one says it: 1.6 million."""
    return f"{number / 1e6:.3g} million" if number >= 1e6 else f"{number:,}"
