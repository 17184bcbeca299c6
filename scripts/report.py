"""Write report.html about a run or a sweep into its folder, a page that any browser opens (extra analysis):

python scripts/report.py outputs/RUN
"""

from pathlib import Path

from gpt.cli.options import Parser
from gpt.settings import UserError, user_errors


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, or a sweep under outputs/sweeps/")
    options = parser.parse_args(arguments)
    from gpt.analysis.report import write_report  # after --help

    try:
        print(write_report(options.folder))
    except ImportError as error:
        reason = f"extra = analysis: {error.name} is not installed"
        raise UserError(f'{reason}; pip install -e ".[analysis]"') from None


if __name__ == "__main__":
    with user_errors():
        main()
