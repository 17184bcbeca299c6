"""A trained model as one HTML file, which writes plays in any browser: `scripts/export_html.py`."""

import base64
import json
import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

import numpy as np

from gpt.errors import UserError
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

SCRIPTS = ("tokenizer.js", "decoder.js", "page.js")


def render(
    model: GPT, tokenizer: Tokenizer, title: str, facts: Mapping[str, str], prompt: str, text: str = ""
) -> str:
    """The page. Its weights, in float16, and all that it needs are inside. `facts` are shown under the title.

    It opens with `text`, which begins with the prompt, if there is one.

    Raises UserError for weights that float16 cannot hold, and for an activation that the page does not know.
    """
    if not re.search(rf"^  {model.config.activation}: ", read("decoder.js"), re.MULTILINE):
        reason = "the page has no formula for it; add one to ACTIVATIONS in gpt/interop/page/decoder.js"
        raise UserError(f"model.activation = {model.config.activation}: {reason}")
    with np.errstate(over="ignore"):
        weights = {name: value.detach().numpy().astype("<f2") for name, value in model.named_parameters()}
    if not all(np.isfinite(array).all() for array in weights.values()):
        reason = "larger than 65,504 or nan; export a model that has not diverged"
        raise UserError(f"weights = (not finite in float16): {reason}")
    # A piece is a string of which each character stands for a byte
    pieces, merges = [piece.decode("latin-1") for piece in tokenizer.pieces], []
    if tokenizer.kind == "bpe":
        ids = {letters: id for id, letters in enumerate(tokenizer.state["vocabulary"])}
        merges = [(ids[left], ids[right], ids[left + right]) for left, right in tokenizer.state["merges"]]
    data = {
        "config": model.config.model_dump(mode="json"),
        "tokenizer": {"kind": tokenizer.kind, "pieces": pieces, "merges": merges},
        "text": text,
        "sizes": {name: array.size for name, array in weights.items()},
        "weights": base64.b64encode(b"".join(array.tobytes() for array in weights.values())).decode(),
    }
    rows = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return Template(read("page.html")).substitute(
        title=escape(title),
        facts="".join(rows),
        prompt=escape(prompt),
        css=read("page.css"),
        data=json.dumps(data).replace("<", "\\u003c"),  # no vocabulary can end the script that holds it
        script="\n".join(map(read, SCRIPTS)),
    )


def read(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
