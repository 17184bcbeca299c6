"""Draw the losses of a run:  python dev/plot_run.py outputs/RUN curve.png"""

import argparse
from pathlib import Path

from gpt.cli.pictures import draw_run, our_style
from gpt.files import atomic
from gpt.settings import UserError, user_errors

BASELINES = {"notebook": 1.5407, "baby GPT": 1.4697}  # published validation losses in nats per character


def draw(run: Path, picture: Path) -> None:
    """Write a picture of training and validation loss, beside the published losses that are near. Raises UserError."""
    path = run / "metrics.csv"
    with our_style():
        if (figure := draw_run(path, "character", BASELINES)) is None:
            raise UserError(f"file = {path}: no losses in it; draw another run")
        kind = picture.suffix.lower().lstrip(".")
        with atomic(picture) as file:
            figure.savefig(file, format=kind if kind in ("pdf", "svg") else "png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("picture", type=Path, help="the file to write, such as curve.png")
    options = parser.parse_args()
    draw(options.run, options.picture)


if __name__ == "__main__":
    with user_errors():
        main()
