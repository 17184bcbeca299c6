"""A table of many runs, best first, and pictures of them, written into the folder that holds the runs."""

import json
import math
import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pandas import DataFrame, Series, to_numeric

from gpt.analysis.plots import draw_pictures, save
from gpt.analysis.runs import JINJA, read_runs, show
from gpt.errors import UserError, did_you_mean, shorten
from gpt.files import atomic, write_text

RESULTS = ["loss", "accuracy", "difference", "noise", "seeds", "majority", "naive_bayes"]
COSTS = ["seconds", "parameters", "chars_per_second"]  # dropped first where a terminal has no room
MEANS = {"loss": ["loss", *COSTS], "accuracy": ["accuracy", "majority", "naive_bayes", "seconds"]}
# Typed like choices, which stand for settings, but these do not
SILENT = ("callbacks", "hydra", "init", "logger", "name", "resume", "seed")
NO_BEST, SEED = "no best val/loss; keep callbacks.best", r"(^|[,_])seed[=-]\d+$"


class Comparison(NamedTuple):
    """Finished runs and their table, in which a line stands for runs that differ in their seed alone."""

    table: DataFrame  # best first: the columns run, `settings`, `metric`, and what else was found
    runs: DataFrame  # a row for each run, as `read_runs` has it; its column `line` is the index of the table
    settings: list[str]  # the columns by which lines are told apart
    metric: str  # loss, or accuracy for runs that were fine-tuned
    left_out: list[str]  # the other runs, and why they are not in the table


def compare(
    folder: Path, x: str = "steps", sort: str = "", columns: Sequence[str] = (), baseline: str = ""
) -> str:
    """Write compare.md, compare.csv and the pictures into `folder`, and return what a terminal should show.

    `x` is what the pictures have on their horizontal axis: "steps" (and the settings that vary), "tokens",
    "seconds" or "flops". The others are as in `scripts/compare.py`. Raises UserError if there is nothing to
    compare, and for what describes no column or line of the table.
    """
    found, width = compare_runs(folder, baseline), shutil.get_terminal_size((140, 24)).columns
    table = sort_table(found.table, sort)
    for name in columns:
        check_column(name, table)
    cells = render(table)[list(columns) or choose_columns(found)]
    notes = JINJA.get_template("notes.txt").render(found=found, baseline=shorten(baseline or "the best", 100))
    notes = notes.splitlines()
    write_text(folder / "compare.md", "\n\n".join([markdown(cells), *notes, *found.left_out]) + "\n")
    write_text(folder / "compare.csv", table.to_csv(index=False))
    pictures = {f"{name}.png": figure for name, figure in draw_pictures(found, x).items()}
    for name, figure in pictures.items():
        with atomic(folder / name) as file:
            file.write(save(figure, "png"))
    shown = cells if columns else fit(cells, found.settings, width)
    if dropped := [name for name in cells if name not in shown]:
        notes.insert(0, f"No room here for {', '.join(dropped)}: see compare.csv, or choose with --columns.")
    written = f"written into {folder}: {', '.join(['compare.md', 'compare.csv', *pictures])}"
    parts = [aligned(shown), [textwrap.fill(note, width) for note in notes], found.left_out, [written]]
    return "\n\n".join("\n".join(part) for part in parts if part)


def compare_runs(folder: Path, baseline: str = "") -> Comparison:
    """The runs under a folder: language models or, where there are none, those that were fine-tuned."""
    runs = read_runs(folder)
    is_task = runs["accuracy"].notna()
    is_model = runs["loss"].notna() & ~is_task
    metric, is_in = ("loss", is_model) if is_model.any() else ("accuracy", is_task)
    if not is_in.any():
        raise UserError(f"folder = {folder}: none of its runs is whole, or there is {NO_BEST}")
    reasons = is_task.map({True: "fine-tuned, not a language model", False: NO_BEST})
    left_out = list((runs["name"] + ": " + runs["problem"].fillna(reasons))[~is_in])
    runs, settings = group_runs(runs[is_in])
    lines = runs.groupby("line")
    first, common = lines["name"].first(), lines["name"].first().str.replace(SEED, "", regex=True)
    names = common.where((lines.size() > 1) & (common != ""), first)
    if metric == "accuracy":
        settings = {"task": lines["task.name"].first()} | settings
    columns = {"run": names} | settings | {"sd": lines[metric].std(), "seeds": lines.size()}
    table = DataFrame(columns).join(lines[MEANS[metric]].mean())
    by, ascending = (["loss"], True) if metric == "loss" else (["task", "accuracy"], [True, False])
    table = table.sort_values(by, ascending=ascending, kind="stable")
    table = add_differences(table, runs, metric, find_baselines(table, runs, list(settings), baseline))
    return Comparison(table, runs, list(settings), metric, left_out)


def group_runs(runs: DataFrame) -> tuple[DataFrame, dict[str, Series]]:
    """Runs with a column `line`, equal for those that differ in their seed alone, and what tells lines apart.

    That is what was typed and varies, in the order in which it was typed. A choice such as model/arch=gpt1
    stands for all that it sets: another setting is there only if lines differ in it that were typed alike.
    """
    settings = [key for key in runs if "." in key or key == "init"]
    runs = runs.assign(line=as_text(runs[settings]).groupby(settings, sort=False).ngroup())
    lines = runs.drop_duplicates("line").set_index("line")
    words = DataFrame(list(lines["overrides"]), lines.index, dtype=object)
    choices = words[[key for key in words if "." not in key and key.partition("/")[0] not in SILENT]]
    lines = lines[settings].join(choices.map(lambda value: str(value) if value == value else "-"))
    texts = as_text(lines).loc[:, lambda texts: texts.nunique() > 1]
    typed = [*words, *(texts if words.isna().all(axis=1).any() else ())]
    told, shown = Series("", lines.index), list[str]()
    for key in dict.fromkeys([*(key for key in typed if key in texts), *texts]):
        more = told + "\n" + texts[key]
        if key in typed or more.nunique() > told.nunique():
            told, shown = more, [*shown, key]
    ends = [re.split("[./]", key)[-1] for key in shown]  # n_head for model.n_head, where it is clear
    names = [end if ends.count(end) == 1 else key for key, end in zip(shown, ends, strict=True)]
    values = lines[shown].map(lambda value: "null" if value in (None, "None") else value)
    return runs, dict(values.set_axis(names, axis=1).items())


def as_text(frame: DataFrame) -> DataFrame:
    """Texts by which values of any kind are told apart: 1, true, null, [1, 2]."""
    return frame.map(lambda value: json.dumps(value, default=str))


def find_baselines(table: DataFrame, runs: DataFrame, settings: Sequence[str], text: str) -> Series:
    """For each line the one that it is compared with: the best of its task, or the one that `text` describes.

    That is what varies, as n_layer=2,arch=gpt1, or a part of a run's name. Raises UserError if it describes
    none, or several of one task.
    """
    tasks = table.get("task", Series("", table.index))
    baselines = {tasks[line]: line for line in reversed(table.index)}
    if text:
        words = {line: {f"{name}={show(row[name])}" for name in settings} for line, row in table.iterrows()}
        found = [line for line in table.index if words[line].issuperset(text.split(","))]
        found = found or list(runs["line"][runs["name"].str.contains(text, regex=False)].unique())
        if not found or tasks[found].duplicated().any():
            reason = f"describes {len(found)} lines of the table"
            advice = "write what varies, as n_layer=2,n_head=4, or a run's name"
            raise UserError(f"--baseline = {shorten(text)}: {reason}; {advice}")
        baselines |= {tasks[line]: line for line in found}
    return tasks.map(baselines)


def add_differences(table: DataFrame, runs: DataFrame, metric: str, baselines: Series) -> DataFrame:
    """The table with each line's difference to its baseline, its interval, and if it exceeds the noise."""
    samples = runs.groupby("line")[metric].agg(list)
    interval = [welch_interval(samples[line], samples[other]) for line, other in baselines.items()]
    difference = table[metric] - table[metric][baselines].to_numpy()
    noise = (difference.abs() > interval).map({True: "exceeds", False: "within"})
    table = table.assign(difference=difference, interval=interval, noise=noise)
    table.loc[table["interval"].isna(), "noise"] = "unknown"
    table.loc[baselines == baselines.index, ["interval", "noise"]] = None
    return table.assign(bits_per_char=table["loss"] / math.log(2)) if metric == "loss" else table


def welch_interval(values: Sequence[float], others: Sequence[float]) -> float:
    """Half the 95 % confidence interval of a difference of means (Welch 1947), or nan for a single value."""
    from scipy.stats import ttest_ind  # takes a second, and a single run's page needs none

    if min(len(values), len(others)) < 2:
        return math.nan
    if len(set(values)) == len(set(others)) == 1:
        return 0.0
    low, high = ttest_ind(values, others, equal_var=False).confidence_interval()
    return float(high - low) / 2


def sort_table(table: DataFrame, column: str) -> DataFrame:
    """The table in the order of a column, numbers before texts. Raises UserError if it has no such column."""
    if not column:
        return table
    check_column(column, table)
    texts = table[column].map(str)
    keys = DataFrame({"number": to_numeric(texts, errors="coerce"), "text": texts})
    return table.loc[keys.sort_values(["number", "text"], kind="stable").index]


def check_column(name: str, table: DataFrame) -> None:
    """Raises UserError for a column that the table does not have."""
    if name not in table:
        raise UserError(f"column = {shorten(name)}: not in the table; {did_you_mean(name, table)}")


def choose_columns(found: Comparison) -> list[str]:
    """The columns that say something: names of runs unless they repeat what varies, what varies, results."""
    table, settings = found.table, found.settings
    silent = set() if table["seeds"].max() > 1 else {"noise", "seeds"}
    silent |= set() if table["noise"].notna().any() else {"noise", "difference"}
    names = table["run"]
    repeat = [*names.str.match(r"[A-Za-z][^/]*$"), *(names.str.contains(name).all() for name in settings)]
    results = [name for name in RESULTS + COSTS if name in table and name not in silent]
    return [*([] if all(repeat) and settings else ["run"]), *settings, *results]


def render(table: DataFrame) -> DataFrame:
    """The cells as text, with the digits that mean something. Numbers without an error have blanks for it."""
    metric = "loss" if "loss" in table else "accuracy"
    spread = table["sd"][table["sd"] > 0].median()
    is_known = metric == "loss" and not math.isnan(spread)
    digits = min(4, max(2, 1 - math.floor(math.log10(spread)))) if is_known else 4

    def write(name: str, form: str) -> Series:
        return table[name].map(lambda value: form.format(value) if value == value else "")

    texts = table.map(show).assign(run=table["run"].map(lambda name: cut(name, 60)))
    for name in {"majority", "naive_bayes"} & set(table):
        texts[name] = write(name, "{:.4f}")
    for name, sign, error in ((metric, "", "sd"), ("difference", "+", "interval")):
        errors = write(error, f" ± {{:.{digits}f}}")
        texts[name] = write(name, f"{{:{sign}.{digits}f}}") + errors.str.ljust(errors.str.len().max())
    texts.loc[table["noise"].isna(), "difference"] = ""
    return texts


def cut(name: str, width: int) -> str:
    """A run's name, which begins with a date and ends with what was typed, in at most `width` characters."""
    return name if len(name) <= width else f"{name[:10]}...{name[13 - width :]}"


def fit(cells: DataFrame, settings: list[str], width: int) -> DataFrame:
    """The columns of cells for which a terminal has room.

    What runs took is dropped first, then settings in which most lines agree, then what is known of them.
    """
    cells = cells.map(lambda cell: cut(cell, min(44, max(24, 3 * width // 10))))
    settings = sorted(settings, key=lambda name: -cells[name].value_counts().max())
    for name in [*reversed(COSTS), *settings, *reversed(RESULTS[2:])]:
        if max(map(len, aligned(cells))) > width:
            cells = cells.drop(columns=name, errors="ignore")
    return cells


def aligned(cells: DataFrame, separator: str = "  ") -> list[str]:
    """The lines of a table, below one of the columns' names. Texts begin, and numbers end, in one column."""
    columns = [[name, *cells[name]] for name in cells]
    for column in columns:
        is_text = column[0] == "run" or not any(re.match(r"[+-]?\d", cell) for cell in column)
        width = max(map(len, column))
        column[:] = [cell.ljust(width) if is_text else cell.rjust(width) for cell in column]
    return [separator.join(line).rstrip() for line in zip(*columns, strict=True)]


def markdown(cells: DataFrame) -> str:
    """The same as a Markdown table, which also reads well in an editor."""
    names, *lines = aligned(cells.map(lambda cell: cell.replace("|", "\\|")), " | ")
    rule = " | ".join("-" * (len(name) - 1) + ":" for name in names.split(" | "))
    return "\n".join(f"| {line} |" for line in (names, rule, *lines))
