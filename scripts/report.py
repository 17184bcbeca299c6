"""Write report.html about a run or a sweep into its folder, a page that any browser opens (extra plot):

python scripts/report.py outputs/RUN
"""

from pathlib import Path

from gpt.cli.options import Parser
from gpt.errors import UserError, user_errors


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, or a sweep under outputs/sweeps/")
    options = parser.parse_args(arguments)
    from gpt.cli.html_report import write_report  # after --help, which needs no torch

    try:
        print(write_report(options.folder))
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise UserError('matplotlib = (missing): it draws the pictures; pip install -e ".[plot]"') from None


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
