"""Write report.html about a run or a sweep into its folder, a page that any browser opens (extra analysis):

python scripts/report.py outputs/RUN
"""

from pathlib import Path

try:
    from gpt.errors import UserError, user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
from gpt.cli.options import Parser


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="a run folder, or a sweep under outputs/sweeps/")
    options = parser.parse_args(arguments)
    try:
        from gpt.analysis.report import write_report  # after --help, which needs no extra
    except ImportError as error:
        raise UserError(
            f'extra = analysis: {error.name} is not installed; pip install -e ".[analysis]"'
        ) from None
    print(write_report(options.folder))


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
