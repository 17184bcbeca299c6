"""Options of the programs that are not composed by Hydra."""

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import NoReturn

from gpt.errors import LARGEST_INT, UserError, shorten
from gpt.files import PRETRAINED


class Parser(argparse.ArgumentParser):
    """Shows the program's docstring as it is, and reports wrong options on one line, like every other mistake of a user."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"options = {shorten(' '.join(sys.argv[1:]))}: {shorten(message, 200)}; --help lists all options"
        )


def add_checkpoint(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the argument that says which trained model is meant. Its value, `checkpoint`, is for `gpt.cli.runs.find_checkpoint`.

    With `several` it is a list of them, for `gpt.cli.runs.load_models`.
    """
    which = parser.add_mutually_exclusive_group()
    what = "a run folder, of which the best checkpoint is taken, or a .ckpt file; by default the newest run that is no mere trial"
    what += "; several are averaged" if several else ""
    # Suppressed, or else an argument that is not given would overwrite what --pretrained has set
    which.add_argument(
        "checkpoint", nargs="*" if several else "?", metavar="RUN", default=argparse.SUPPRESS, help=what
    )
    shipped = [str(PRETRAINED)] if several else str(PRETRAINED)
    ships = "the small model that comes with this project, trained on Tiny Shakespeare"
    which.add_argument("--pretrained", dest="checkpoint", action="store_const", const=shipped, help=ships)


def whole_number(smallest: int) -> Callable[[str], int]:
    """For argparse's `type`: whole numbers from `smallest` on, which may be written as 1e3."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (number := float(text)).is_integer() and smallest <= number <= LARGEST_INT:
                return int(number)
        raise argparse.ArgumentTypeError(
            f"{shorten(text)!r} is not a whole number from {smallest} to {LARGEST_INT:,}"
        )

    return parse
