"""Write a trained model for other programs; `transformers` reads it without any code of ours (extra hf):

python scripts/export_hf.py outputs/RUN --out exported
"""

import argparse
from pathlib import Path

try:
    from gpt.errors import user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
from gpt.cli.options import Parser, add_checkpoint, find_checkpoint


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_checkpoint(parser)
    folder = "the folder to write, which must not exist yet"
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help=folder)
    onnx = "also write model.onnx, for any architecture (extra onnx)"
    parser.add_argument("--onnx", action="store_true", help=onnx)
    cache = "with --onnx: a model that takes and returns its cache, to write a text step by step"
    parser.add_argument("--cache", action="store_true", help=cache)
    options = parser.parse_args(arguments)
    if options.cache and not options.onnx:
        parser.error("--cache is of model.onnx; add --onnx")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    from gpt.checkpoint import load
    from gpt.interop.huggingface import export

    model, tokenizer, _ = load(find_checkpoint(options.checkpoint))
    print(f"{options.out}: {export(model, tokenizer, options.out, options.onnx, options.cache)}")


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
