"""Print the exact loss of a trained model on all of the validation split and all of the training split:

python scripts/evaluate.py outputs/RUN
python scripts/evaluate.py outputs/RUN outputs/OTHER    the average of their probabilities
"""

import argparse
import json
import math
from collections.abc import Mapping
from typing import Any

from gpt.cli.options import Parser, add_checkpoint, load_models, whole_number
from gpt.errors import UserError, user_errors


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_checkpoint(parser, several=True)
    data = "another text, split like the run's own, which is the default"
    parser.add_argument("--data", metavar="FILE", help=data)
    windows = "cut the text into windows of so many tokens, to compare models of other contexts; "
    windows += "default: the model's context"
    parser.add_argument("--context-length", type=whole_number(1), metavar="T", help=windows)
    as_json = "print one JSON object, with every digit, in place of the table"
    parser.add_argument("--json", action="store_true", help=as_json)
    return parser.parse_args(arguments)


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


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if options.data is not None and not options.data.strip():
        raise UserError("--data = (empty): not a text; give a file, or leave it out for the run's own text")

    from gpt.evaluate import evaluate
    from gpt.machine import keep_freed_memory

    keep_freed_memory()
    losses = evaluate(*load_models(options.checkpoint or []), options.data, options.context_length)
    print(json.dumps(losses) if options.json else tabulate(losses))


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
