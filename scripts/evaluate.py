"""Print the exact loss of a trained model on all of the validation split and all of the training split:

python scripts/evaluate.py outputs/RUN
python scripts/evaluate.py outputs/RUN outputs/OTHER    the average of their probabilities
python scripts/evaluate.py --pretrained --text "To be, or not to be" --color    of one text, as a whole
"""

import argparse
import codecs
import json
import math
import os
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

try:
    from gpt.errors import UserError, printable, user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
from gpt.cli.options import Parser, add_checkpoint, load_models, tint, typed_text, whole_number

if TYPE_CHECKING:
    from torch import Tensor

    from gpt.tokenizer import Tokenizer


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_checkpoint(parser, several=True)
    data = "another text, split like the run's own, which is the default"
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--data", metavar="FILE", help=data)
    text = "the loss on this text as a whole, however short, in which \\n is a line break"
    source.add_argument("--text", type=typed_text, help=text)
    source.add_argument("--text-file", metavar="FILE", help="the same for the text in a UTF-8 file")
    color = "print the text first, each character tinted by how much its token surprised the model"
    parser.add_argument("--color", action="store_true", help=color)
    unknown = "leave out characters of the text that the model does not know"
    parser.add_argument("--drop-unknown", action="store_true", help=unknown)
    windows = "cut the text into windows of so many tokens, to compare models of other contexts; "
    windows += "default: the model's context"
    parser.add_argument("--context-length", type=whole_number(1), metavar="T", help=windows)
    as_json = "print one JSON object, with every digit, in place of the table"
    parser.add_argument("--json", action="store_true", help=as_json)
    options = parser.parse_args(arguments)
    if (options.color or options.drop_unknown) and options.text is options.text_file:
        parser.error("--color and --drop-unknown need --text or --text-file")
    return options


def tabulate(losses: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each split. Bits per byte are left out if they repeat those per character, as for ASCII."""
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
    lines = [" " * 5 + "".join(f"  {title}" for title in columns)]
    for name, *cells in zip(losses, *columns.values(), strict=True):
        aligned = (f"  {cell:>{len(title)}}" for title, cell in zip(columns, cells, strict=True))
        lines.append(f"{name:5}" + "".join(aligned))
    return "\n".join(lines)


def colored(tokenizer: "Tokenizer", ids: "Tensor", surprises: "Tensor") -> str:
    """The text of ids (T,), each character tinted by the surprise of the last of its tokens, in nats (T,)."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a token may end within a character
    pieces = (printable(decoder.decode(tokenizer.pieces[id])) for id in ids.tolist())
    return "".join(tint(char, nats) for piece, nats in zip(pieces, surprises, strict=True) for char in piece)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.data is not None and not options.data.strip():
        raise UserError("--data = (empty): not a text; give a file, or leave it out for the run's own text")

    from gpt.config import RunConfig
    from gpt.evaluate import evaluate, score
    from gpt.machine import keep_freed_memory
    from gpt.text import Text

    keep_freed_memory()
    text = options.text
    if options.text_file is not None:
        place = RunConfig.from_dict({"data": {"path": os.path.expanduser(options.text_file)}}).data
        text = "".join(Text(place, setting="--text-file"))
    model, tokenizer, metadata = load_models(options.checkpoint or [])
    if text is None:
        try:
            losses = evaluate(model, tokenizer, metadata, options.data, options.context_length)
        except UserError as error:
            if options.data is None or "of one window" not in str(error):
                raise
            advice = f"--text-file {shlex.quote(options.data)} scores it as a whole"
            raise UserError(f"--data = {options.data}: shorter than a window when split; {advice}") from None
    else:
        text = tokenizer.drop_unknown(text) if options.drop_unknown else text
        surprises, found = score(model, tokenizer, text, options.context_length)
        losses = {"text": found}
        if options.color and not options.json:
            print(colored(tokenizer, tokenizer.encode(text), surprises) + "\n")
    print(json.dumps(losses) if options.json else tabulate(losses))


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
