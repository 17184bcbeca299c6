"""Compare the runs under a folder, of a sweep or any others: a table, best first, and pictures of them:

python scripts/compare.py outputs/sweeps/SWEEP
python scripts/compare.py outputs --baseline arch=gpt2 --sort seconds
"""

from pathlib import Path

try:
    from gpt.errors import UserError, user_errors
except ModuleNotFoundError as error:
    raise SystemExit(f"error: {error}; activate the environment: source .venv/bin/activate") from None
from gpt.cli.options import Parser


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "folder", type=Path, help="a sweep under outputs/sweeps/, or any folder with runs in it"
    )
    parser.add_argument(
        "--x",
        default="steps",
        choices=["steps", "tokens", "seconds", "flops"],
        help="what the pictures have on their horizontal axis",
    )
    parser.add_argument(
        "--sort", default="", metavar="COLUMN", help="the column by which lines are sorted, lowest first"
    )
    parser.add_argument(
        "--columns", metavar="A,B,C", help="only these columns, however wide; their names are in compare.csv"
    )
    baseline = "the line to which differences are taken: n_layer=2, or a run's name; by default the best"
    parser.add_argument("--baseline", default="", metavar="TEXT", help=baseline)
    parser.add_argument("--csv", action="store_true", help="print the whole table as CSV, and write nothing")
    options = parser.parse_args(arguments)
    try:
        from gpt.analysis.compare import compare_runs, whole_table  # after --help, which needs no extra
        from gpt.analysis.report import compare
    except ImportError as error:
        raise UserError(
            f'extra = analysis: {error.name} is not installed; pip install -e ".[analysis]"'
        ) from None

    if options.csv:
        if options.columns:
            raise UserError(
                f"--columns = {options.columns}: CSV always has all columns; leave one of the two options out"
            )
        kinds, _ = compare_runs(options.folder, options.baseline)
        print(whole_table(kinds, options.sort).to_csv(index=False), end="")
        return
    columns = options.columns.split(",") if options.columns else ()
    print(compare(options.folder, options.x, options.sort, columns, options.baseline))


def cli() -> None:
    with user_errors():
        main()


if __name__ == "__main__":
    cli()
