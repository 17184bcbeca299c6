"""What is written about runs: tables, pictures, and pages that any browser opens and that load nothing."""

import math
import shlex
import shutil
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib.figure import Figure
from pandas import DataFrame, Series

from gpt.analysis.compare import COSTS, Comparison, compare_runs, read_run, show, whole_table
from gpt.analysis.plots import draw_pictures, draw_run, save
from gpt.checkpoint import find, load, read
from gpt.drawing import draw_attention
from gpt.errors import UserError, one_line, printable
from gpt.files import atomic, remove_staged, write_text
from gpt.model import attention_weights
from gpt.run import Run
from gpt.tokenizer import tokenizer_class

RESULTS = ["loss", "accuracy", "difference", "noise", "seeds", "majority", "naive_bayes", *COSTS]
# What attention is shown on: the text of which the tokenizer knows most
TEXTS = ("ROMEO:\nO, speak again, bright angel", "abcdefghijklmnop")
MOST_TOKENS, MOST_LAYERS, MOST_HEADS, MOST_SAMPLES = 24, 12, 16, 12


def compare(
    folder: Path, x: str = "steps", sort: str = "", columns: Sequence[str] = (), baseline: str = ""
) -> str:
    """Write compare.md, compare.csv and the pictures into `folder`, and return what a terminal should show.

    `x` is what the pictures have on their horizontal axis: "steps" (and the settings that vary), "tokens",
    "seconds" or "flops". The others are as in `scripts/compare.py`. Raises UserError if there is nothing to
    compare, and for what describes no column or line of the table.
    """
    kinds, left_out = compare_runs(folder, baseline)
    table, width = whole_table(kinds, sort, columns), shutil.get_terminal_size((140, 24)).columns
    parts = [(found, render(found, columns).loc[table.index[table["kind"] == found.kind]]) for found in kinds]
    shown = [cells if columns else fit(cells, found.settings, width) for found, cells in parts]
    page = partial(fill, "compare.md", parts=parts, left_out=left_out)
    write_text(folder / "compare.md", page(shown=[cells for _, cells in parts], width=10**6) + "\n")
    write_text(folder / "compare.csv", table.to_csv(index=False))
    written = ["compare.md", "compare.csv"]
    for number, found in enumerate(kinds, 1):
        for name, figure in draw_pictures(found, x).items():
            written.append(f"{name}-{number}.png" if number > 1 else f"{name}.png")
            with atomic(folder / written[-1]) as file:
                file.write(save(figure, "png"))
    return f"{page(shown=shown, width=width)}\n\nwritten into {folder}: {', '.join(written)}"


def render(found: Comparison, columns: Sequence[str] = ()) -> DataFrame:
    """The table as text, in these columns or in all that say something, with the digits that mean something.

    Names of runs say nothing where they repeat what varies.
    """
    table, metric = found.table, found.metric
    spread = table["sd"][table["sd"] > 0].median() if metric == "loss" else math.nan
    digits = 4 if math.isnan(spread) else min(4, max(2, 1 - math.floor(math.log10(spread))))
    texts = table.map(show).assign(run=table["run"])
    for name, sign, error in ((metric, "", "sd"), ("difference", "+", "interval")):
        errors = table[error].map(f" ± {{:.{digits}f}}".format).mask(table[error].isna(), "")
        texts[name] = table[name].map(f"{{:{sign}.{digits}f}}".format)
        texts[name] += errors.str.ljust(errors.str.len().max())
    texts.loc[found.baseline, "difference"] = ""
    silent = set() if table["seeds"].max() > 1 else {"noise", "seeds"}
    repeat = [table["run"].str.match(r"[A-Za-z][^/]*$"), *map(table["run"].str.contains, found.settings)]
    names = [] if found.settings and all(map(all, repeat)) else ["run"]
    results = [name for name in RESULTS if name in texts and name not in silent and texts[name].any()]
    return texts[[name for name in columns if name in texts] or [*names, *found.settings, *results]]


def fit(cells: DataFrame, settings: list[str], width: int) -> DataFrame:
    """The columns of cells for which a terminal has room.

    What runs took is dropped first, then settings, unless nothing else tells lines apart, then what is known
    of the results. The middle of long names is left out: they begin with a date, and end with what was typed.
    """
    most = min(44, max(24, 3 * width // 10))
    cells = cells.map(lambda cell: cell if len(cell) <= most else f"{cell[:10]}...{cell[13 - most :]}")
    told = settings[::-1] if "run" in cells else []
    for name in [*COSTS[::-1], *told, *RESULTS[:1:-1]]:
        if markdown(cells).index("\n") > width:
            cells = cells.drop(columns=name, errors="ignore")
    return cells


def markdown(cells: DataFrame) -> str:
    """A Markdown table that reads well in a terminal, too: texts begin, and numbers end, in one column."""
    columns = []
    for name, column in cells.map(lambda cell: cell.replace("|", "\\|")).items():
        width = max(len(name), column.str.len().max())
        is_number = name != "run" and column.str.match(r"[+-]?\d").any()
        rule = "-" * (width - 1) + (":" if is_number else "-")
        columns.append(Series([name, rule, *column]).str.pad(width, "left" if is_number else "right"))
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


def write_report(folder: Path) -> Path:
    """Write `folder`/report.html about the run that it is, or else about the runs in it, and return its path.

    Raises UserError if no run has finished.
    """
    is_run = (folder / "config.yaml").is_file()
    values = describe_run(folder) if is_run else describe_sweep(folder)
    page = fill("run.html" if is_run else "sweep.html", name=folder.resolve().name, **values)
    remove_staged(folder, "report.html")
    write_text(folder / "report.html", page)
    return folder / "report.html"


def fill(template: str, **values: Any) -> str:
    """A file of `templates/` with these values, which are text for HTML, whatever is in them."""
    loader = PackageLoader("gpt.analysis")
    jinja = Environment(loader=loader, autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= {"printable": printable, "shell": shlex.join, "markdown": markdown, "embed": embed}
    jinja.globals["show"] = show
    return jinja.get_template(template).render(values).strip()


def describe_run(folder: Path) -> dict[str, Any]:
    """What the page of a run shows. A part for which the folder has nothing is a text that says so."""
    run = Run(folder)
    if run.result is None:
        raise UserError(f"folder = {folder}: not finished; give a run that has finished")
    row = read_run(folder)
    unit = "example" if row["metric"] == "accuracy" else tokenizer_class(row["tokenizer"]).loss_unit
    return {
        "run": row,
        "result": run.result,
        "about": run.origin,
        "curves": attempt(lambda: draw_run(folder / "metrics.csv", unit)),
        "samples": attempt(lambda: read_samples(run)),
        "attention": attempt(lambda: draw_layers(folder)),
        "config": (folder / "config.yaml").read_text(encoding="utf-8"),
    }


def describe_sweep(folder: Path) -> dict[str, Any]:
    """What the page of many runs shows. Raises UserError if there is nothing to compare."""
    kinds, left_out = compare_runs(folder)
    names = [name for found in kinds for name in found.runs["name"]]
    return {
        "parts": [(found, render(found), draw_pictures(found)) for found in kinds],
        "left_out": left_out,
        "pages": {name: (folder / name / "report.html").is_file() for name in names},
        "about": Run(folder / names[0]).origin,
    }


def attempt(make: Callable[[], Any]) -> Any:
    """A part of a page, or a text that says why it is missing."""
    try:
        return make()
    except Exception as error:
        return one_line(error)


def embed(figure: Figure) -> str:
    """A picture as an address that holds all of it."""
    return f"data:image/svg+xml;base64,{b64encode(save(figure, 'svg')).decode()}"


def read_samples(run: Run) -> list[tuple[int | None, str]]:
    """What the model wrote after validations, and after how many steps. Of many, some, the last included."""
    history = read(run.last)["callbacks"].get("samples", {}).get("history", []) if run.last else []
    if not history:
        return [(None, (run.folder / "sample.txt").read_text(encoding="utf-8"))]
    return history[:: -math.ceil(len(history) / MOST_SAMPLES)][::-1]


def draw_layers(folder: Path) -> list[Figure]:
    """The attention of each layer of the best model, on a short text that its tokenizer knows."""
    model, tokenizer, _ = load(find(str(folder)))
    known = max(map(tokenizer.drop_unknown, TEXTS), key=len) or tokenizer.default_prompt
    ids = tokenizer.encode(known)[None, : min(MOST_TOKENS, model.config.context_length)]
    tokens = [printable(tokenizer.decode([id])) for id in ids[0].tolist()]
    weights = attention_weights(model, ids)[:MOST_LAYERS, 0, :MOST_HEADS].detach().float()
    return [draw_attention(layer, tokens, "") for layer in weights]
