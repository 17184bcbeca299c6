"""Ask a fine-tuned model about texts: its label for each, and the probabilities of all labels:

python scripts/classify.py outputs/RUN --text "What say you"
cat lines.txt | python scripts/classify.py outputs/RUN
"""

import argparse
import json
import sys
from collections.abc import Iterator

try:
    from gpt.errors import UserError, printable, user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
from gpt.cli.options import Parser, newest_run


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    what = "a fine-tuned run, of which the best checkpoint is taken, or a .safetensors file; "
    what += "by default the newest fine-tuned run"
    parser.add_argument("checkpoint", nargs="?", metavar="RUN", help=what)
    text = "the text; of pairs and choices, tabs separate the parts; \\n is a line break; "
    text += "default: each line of stdin"
    parser.add_argument("--text", help=text)
    exact = "print one JSON object for each text, with every digit"
    parser.add_argument("--json", action="store_true", help=exact)
    return parser.parse_args(arguments)


def read_texts(options: argparse.Namespace) -> Iterator[str]:
    """The text that was given, or each line of standard input that is not empty."""
    if options.text is not None:
        yield options.text.encode(errors="surrogateescape").decode(errors="replace")
        return
    if sys.stdin.isatty():
        raise UserError("--text = (missing): nothing to ask about; give one, or lines on standard input")
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(
                f"text = line {number}: not UTF-8 at byte {error.start}; convert it to UTF-8"
            ) from None
        if text:
            yield text


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    from gpt.checkpoint import find
    from gpt.finetune.predict import Answerer

    answerer = Answerer(find(options.checkpoint or newest_run(fine_tuned=True)))
    for text in read_texts(options):
        found = answerer.probabilities(text.replace("\\n", "\n").split("\t"))
        label = max(found, key=found.__getitem__)
        if options.json:
            print(json.dumps({"text": text, "label": label, "probabilities": found}), flush=True)
        else:
            odds = ", ".join(f"{name} {probability:.3f}" for name, probability in found.items())
            print(printable(f"{label}  ({odds})"), flush=True)


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
