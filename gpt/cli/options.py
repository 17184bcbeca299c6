"""Options of the programs that are not composed by Hydra."""

import argparse
import sys
from typing import NoReturn

from gpt.settings import UserError, shorten


class Parser(argparse.ArgumentParser):
    """Shows the program's docstring as it is, and reports wrong options on one line, like every other mistake of a user."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"options = {shorten(' '.join(sys.argv[1:]))}: {shorten(message, 200)}; --help lists all options")
