"""Write a trained model as one HTML file, which writes texts and shows how in any browser, without a network:

python scripts/export_html.py outputs/RUN --out play.html
"""

import argparse
import json
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

try:
    from gpt.errors import UserError, user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
from gpt.cli.options import Parser, add_checkpoint, find_checkpoint

if TYPE_CHECKING:
    from gpt.config import ModelConfig
    from gpt.tokenizer import Tokenizer

PRIVATE = ("hydra.", "data.folder", "init=")  # settings that name folders of one machine
OPENING = 500  # tokens of the text with which a page opens


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_checkpoint(parser)
    out = {"metavar": "FILE", "type": Path, "default": Path("play.html")}
    parser.add_argument("--out", **out, help="what to write (play.html)")
    parser.add_argument("--title", help="the heading of the page; default: how large the model is")
    prompt = "what stands in the prompt box at first, for instance $'JULIET:\\n'"
    parser.add_argument("--prompt", help=prompt)
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser.parse_args(arguments)


def describe(
    checkpoint: Path, config: "ModelConfig", tokenizer: "Tokenizer", metadata: Mapping[str, Any]
) -> dict[str, str]:
    """What the page says about the model, as far as the checkpoint and the run's folder tell."""
    from gpt.text import SHA256

    facts = {
        "parameters": f"{config.parameter_count():,}",
        "layers": str(config.n_layer),
        "heads": str(config.n_head),
        "context": f"{config.context_length} {tokenizer.unit}",
        "trained on": "Tiny Shakespeare" if metadata["text_sha256"] == SHA256 else "another text",
        "date": datetime.fromtimestamp(checkpoint.stat().st_mtime, UTC).date().isoformat(),
    }
    loss, command = None, None
    files = [checkpoint.parent.parent / f"{name}.json" for name in ("result", "run")]
    if packed := metadata.get("pretrained"):
        loss, command = packed["losses_as_stored"]["val_loss"], packed["command"]
        facts["date"] = packed["date"]
    elif all(file.exists() for file in files):
        result, about = (json.loads(file.read_text(encoding="utf-8")) for file in files)
        loss = result["best_val_loss"]
        words = [word for word in about["command"] if not word.startswith(PRIVATE)]
        # Of the files of the text, the names alone
        words = [re.sub(r"[^=,\[]*/", "", word) if word.startswith("data.") else word for word in words]
        command = f"python {shlex.join(words)}"
    if loss is not None:
        facts["validation loss"] = f"{loss:.4f} nats per {tokenizer.loss_unit}"
    return facts | ({"trained by": command} if command else {})


def in_words(number: int) -> str:
    """A number as one says it: 1.6 million."""
    return f"{number / 1e6:.3g} million" if number >= 1e6 else f"{number:,}"


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.out.suffix.lower() not in (".html", ".htm"):
        advice = "a browser would not show it as a page; give a name that ends in .html"
        raise UserError(f"--out = {options.out}: {advice}")

    from gpt.checkpoint import load
    from gpt.files import write_text
    from gpt.generate import generate_text
    from gpt.interop.page import render

    checkpoint = find_checkpoint(options.checkpoint)
    model, tokenizer, metadata = load(checkpoint)
    prompt = options.prompt
    if prompt is None:  # the name of a speaker, if the text can have one
        prompt = "ROMEO:\n" if all(map(tokenizer.knows, "ROMEO:\n")) else tokenizer.default_prompt
    tokenizer.encode(prompt)  # or it would be refused in the page, where nobody can mend the file
    title = options.title or f"Written by a GPT of {in_words(model.config.parameter_count())} parameters"
    facts = describe(checkpoint, model.config, tokenizer, metadata)
    text = generate_text(model, tokenizer, prompt, OPENING, seed=1)
    write_text(options.out, render(model, tokenizer, title, facts, prompt, text))
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, open it in any browser")
    if options.open:
        import webbrowser

        webbrowser.open(options.out.resolve().as_uri())


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
