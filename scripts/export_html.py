"""Write a trained model as one HTML file, which writes texts and shows how it does, in any browser and without a network:

python scripts/export_html.py outputs/RUN --out play.html
"""

import argparse
from pathlib import Path

from gpt.cli.options import Parser, add_checkpoint
from gpt.errors import UserError, user_errors


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add_checkpoint(parser)
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("play.html"), help="what to write (play.html)"
    )
    parser.add_argument("--title", help="the heading of the page; default: how large the model is")
    parser.add_argument("--prompt", help="what stands in the prompt box at first, for instance $'JULIET:\\n'")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)

    from gpt.cli.page import export_page
    from gpt.cli.runs import find_checkpoint

    if options.out.suffix.lower() not in (".html", ".htm"):
        raise UserError(
            f"--out = {options.out}: a browser would not show it as a page; give a name that ends in .html"
        )
    export_page(find_checkpoint(options.checkpoint), options.out, options.title, options.prompt)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, open it in any browser")
    if options.open:
        import webbrowser

        webbrowser.open(options.out.resolve().as_uri())


if __name__ == "__main__":
    with user_errors():
        main()
