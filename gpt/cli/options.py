"""Options of the programs that are not composed by Hydra."""

import argparse
import contextlib
import sys
from collections.abc import Callable
from typing import NoReturn

from gpt.errors import UserError, shorten

LARGEST = 2**31 - 1


class Parser(argparse.ArgumentParser):
    """Shows the program's docstring as it is, and reports wrong options on one line, as any mistake."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        given, what = shorten(" ".join(sys.argv[1:])), shorten(message, 200)
        raise UserError(f"options = {given}: {what}; --help lists all options")


def add_checkpoint(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the argument `checkpoint`, which says what model is meant, or with `several` a list of them.

    It is for `find_checkpoint` and `load_models` of `gpt.cli.newest`.
    """
    which = parser.add_mutually_exclusive_group()
    what = "a run folder, of which the best checkpoint is taken, or a .safetensors file; "
    what += "by default the newest run of at least 500 steps" + "; several are averaged" * several
    # Suppressed, or else an argument that is not given would overwrite what --pretrained has set
    missing, number = argparse.SUPPRESS, "*" if several else "?"
    which.add_argument("checkpoint", nargs=number, metavar="RUN", default=missing, help=what)
    shipped = ["pretrained"] if several else "pretrained"
    ships = "the small model that comes with this project, trained on Tiny Shakespeare"
    which.add_argument("--pretrained", dest="checkpoint", action="store_const", const=shipped, help=ships)


def whole_number(smallest: int) -> Callable[[str], int]:
    """For argparse's `type`: whole numbers from `smallest` on, which may be written as 1e3."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (number := float(text)).is_integer() and smallest <= number <= LARGEST:
                return int(number)
        reason = f"{shorten(text)!r} is not a whole number from {smallest} to {LARGEST:,}"
        raise argparse.ArgumentTypeError(reason)

    return parse
