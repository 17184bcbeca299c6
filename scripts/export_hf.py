"""Write a trained model for other programs: as Hugging Face's `transformers` reads it, without any code of ours (extra hf):

python scripts/export_hf.py outputs/RUN --out exported
"""

import argparse
from pathlib import Path

from gpt.settings import user_errors


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", metavar="RUN", help="a run folder (its best) or a .ckpt file; else the newest")
    parser.add_argument("--out", metavar="DIR", required=True, help="the folder to write; it must not be there yet")
    parser.add_argument("--onnx", action="store_true", help="also write model.onnx, of any architecture (extra onnx)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    from gpt.checkpoint import find, load
    from gpt.convert import export

    model, tokenizer, _ = load(find(options.checkpoint))
    print(f"{options.out}: {export(model, tokenizer, Path(options.out), options.onnx)}")


if __name__ == "__main__":
    with user_errors():
        main()
