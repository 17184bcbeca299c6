"""Ask a fine-tuned model about texts: its label for each, the probabilities of all labels, and the text:

python scripts/classify.py outputs/RUN --text "What say you"
cat lines.txt | python scripts/classify.py outputs/RUN
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

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
    """The text that was given, or each line of standard input that is not empty.

    Bytes that are not UTF-8 become half surrogates, which no answer is given to.
    """
    if options.text is not None:
        yield options.text
        return
    if sys.stdin.isatty():
        raise UserError("--text = (missing): nothing to ask about; give one, or lines on standard input")
    for number, line in enumerate(sys.stdin.buffer):
        encoding = "utf-8" if number else "utf-8-sig"
        if text := line.decode(encoding, errors="surrogateescape").rstrip("\r\n"):
            yield text


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    from gpt.checkpoint import find
    from gpt.finetune.predict import Answerer

    answerer = Answerer(find(options.checkpoint or newest_run(fine_tuned=True)))
    asked, failed = 0, 0
    for text in read_texts(options):
        shown, asked = text.encode(errors="surrogateescape").decode(errors="replace"), asked + 1
        answer: dict[str, Any] = {"text": shown, "label": None}
        try:
            if shown != text:
                raise UserError("text = (bytes): not UTF-8; convert it")
            found = answerer.probabilities(text.replace("\\n", "\n").split("\t"))
            answer |= {"label": max(found, key=found.__getitem__), "probabilities": found}
        except UserError as error:
            if options.text is not None:
                raise
            failed, answer["error"] = failed + 1, str(error)
        print(json.dumps(answer) if options.json else printable(in_words(answer)), flush=True)
    if failed:
        raise UserError(f"text = {failed:,} of {asked:,} lines: no answer, for the reasons above")


def in_words(answer: Mapping[str, Any]) -> str:
    """The label, the probabilities of all labels, and the text; or a dash, and why there is no answer."""
    if "error" in answer:
        return f"-  ({answer['error']})  {answer['text']}"
    odds = ", ".join(f"{name} {probability:.3f}" for name, probability in answer["probabilities"].items())
    return f"{answer['label']}  ({odds})  {answer['text']}"


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
