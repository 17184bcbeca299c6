"""Compare runs, those of a sweep or any others under a folder: a table, best first, and pictures, written into that folder:

python scripts/compare.py outputs/sweeps/SWEEP
"""

from pathlib import Path

from gpt.cli.options import Parser
from gpt.settings import user_errors


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="a sweep under outputs/sweeps/, or any folder with runs in it")
    parser.add_argument(
        "--x",
        default="steps",
        choices=["steps", "tokens", "seconds", "flops"],
        help="what the pictures have on their horizontal axis",
    )
    options = parser.parse_args(arguments)
    from gpt.cli.compare import compare  # after --help, which needs no torch

    print(compare(options.folder, options.x))


if __name__ == "__main__":
    with user_errors():
        main()
