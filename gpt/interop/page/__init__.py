"""A trained model as one HTML file, which writes plays in any browser and shows how it does: `scripts/export_html.py`."""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

FOLDER = Path(__file__).parent
SCRIPTS = ("tokenizer.js", "decoder.js", "page.js")


def render(model: GPT, tokenizer: Tokenizer, title: str, facts: Mapping[str, str], prompt: str) -> str:
    """The page: its weights, in float16, and all that it needs are inside.

    `facts` are shown under the title. Raises UserError for weights that float16 cannot hold, and for an unknown tokenizer.
    """
    with np.errstate(over="ignore"):
        weights = {
            name: parameter.detach().numpy().astype("<f2") for name, parameter in model.named_parameters()
        }
    if not all(np.isfinite(array).all() for array in weights.values()):
        raise UserError(
            "weights = (not finite in float16): larger than 65,504 or nan; export a model that has not diverged"
        )
    data = {
        "config": asdict(model.config),
        "tokenizer": describe_tokenizer(tokenizer),
        "sizes": {name: array.size for name, array in weights.items()},
        "weights": base64.b64encode(b"".join(array.tobytes() for array in weights.values())).decode(),
    }
    listed = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items()
    )
    parts = {"css": "page.css", "page": "page.html"}
    contents = {name: (FOLDER / file).read_text(encoding="utf-8") for name, file in parts.items()}
    return Template(contents["page"]).substitute(
        title=escape(title),
        facts=listed,
        prompt=escape(prompt),
        css=contents["css"],
        data=json.dumps(data).replace(
            "<", "\\u003c"
        ),  # so that no vocabulary can end the script that holds it
        script="\n".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What tokenizer.js needs. A piece is a string of which each character stands for a byte."""
    described: dict[str, Any] = {
        "kind": tokenizer.kind,
        "pieces": [piece.decode("latin-1") for piece in tokenizer.pieces],
    }
    if tokenizer.kind == "bpe":
        ids = {letters: id for id, letters in enumerate(tokenizer.state["vocabulary"])}
        described["merges"] = [
            (ids[left], ids[right], ids[left + right]) for left, right in tokenizer.state["merges"]
        ]
    elif tokenizer.kind not in ("char", "byte"):
        raise UserError(
            f"tokenizer = {tokenizer.kind}: the page has no encoder for it; choose char, byte or bpe"
        )
    return described
