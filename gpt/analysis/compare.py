"""Run folders as tables of pandas: a row for each run, or a line for runs that differ in their seed alone."""

import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pandas import DataFrame, Series, json_normalize, read_csv, to_numeric

from gpt.config import ModelConfig
from gpt.errors import UserError, did_you_mean, one_line, shorten
from gpt.run import Result, Run, TaskResult

# The settings that decide a result. Callbacks other than these two only watch
GROUPS = r"model|data|optimizer|scheduler|trainer|task|finetune|callbacks\.(ema|early_stopping)"
DECISIVE = rf"^(init|seed|({GROUPS})\.(?!_target_).*)$"
# Columns with results, and their names in result.json. Losses are in nats per character, of tasks per example
NUMBERS = {"loss": "best_val_loss", "steps": "step", "seconds": "seconds", "parameters": "parameters"}
NUMBERS |= {"chars_per_second": "chars_per_second", "accuracy": "test_accuracy"}
NUMBERS |= {"majority": "majority_accuracy", "naive_bayes": "naive_bayes_accuracy"}
COSTS = ["seconds", "parameters", "chars_per_second"]
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
    is_copy = runs.duplicated(["line", "seed"])  # which would make the noise seem smaller
    left_out += list(runs["name"][is_copy] + ": has the settings and the seed of another run")
    runs = runs[~is_copy]
    lines = runs.groupby("line")
    first, common = lines["name"].first(), lines["name"].first().str.replace(SEED, "", regex=True)
    names = first.where(lines.size() == 1, common.mask(common == "", folder.absolute().name))
    if metric == "accuracy":
        settings = {"task": lines["task.name"].first()} | settings
    columns = {"run": names} | settings | {"sd": lines[metric].std(), "seeds": lines.size()}
    by, ascending = (["loss"], True) if metric == "loss" else (["task", "accuracy"], [True, False])
    table = DataFrame(columns).join(lines[MEANS[metric]].mean())
    table = table.sort_values(by, ascending=ascending, kind="stable")
    table = add_differences(table, metric, find_baselines(table, runs, list(settings), baseline))
    return Comparison(table, runs, list(settings), metric, left_out)


def group_runs(runs: DataFrame) -> tuple[DataFrame, dict[str, Series]]:
    """Runs with a column `line`, equal for those that differ in their seed alone, and what tells lines apart.

    That is what was typed and varies, in the order in which it was typed. A choice such as model/arch=gpt1
    stands for all that it sets: another setting is there only if lines differ in it that were typed alike.
    """
    settings = [key for key in runs if "." in key or key == "init"]
    texts = runs[settings].map(lambda value: json.dumps(value, default=str))  # 1 is neither true nor [1]
    runs = runs.assign(line=texts.groupby(settings, sort=False).ngroup())
    lines = runs.drop_duplicates("line")
    words = DataFrame(list(lines["overrides"]), lines.index, dtype=object)
    choices = words[[key for key in words if "." not in key and key.partition("/")[0] not in SILENT]]
    choices = choices.map(lambda value: str(value) if value == value else "-")
    texts = texts.loc[lines.index].join(choices).loc[:, lambda texts: texts.nunique() > 1]
    typed = [*words, *(texts if words.isna().all(axis=1).any() else ())]
    told, shown = Series("", lines.index), list[str]()
    for key in dict.fromkeys([*(key for key in typed if key in texts), *texts]):
        more = told + "\n" + texts[key]
        if key in typed or more.nunique() > told.nunique():
            told, shown = more, [*shown, key]
    ends = [re.split("[./]", key)[-1] for key in shown]  # n_head for model.n_head, where it is clear
    names = [end if ends.count(end) == 1 else key for key, end in zip(shown, ends, strict=True)]
    values = lines[[*settings, "line"]].join(choices).set_index("line")[shown]
    values = values.map(lambda value: "null" if value in (None, "None") else value)
    return runs, dict(values.set_axis(names, axis=1).items())


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


def add_differences(table: DataFrame, metric: str, baselines: Series) -> DataFrame:
    """The table with each line's difference to its baseline, its interval, and if it exceeds the noise.

    The interval is half the 95 % confidence interval of a difference of means (Welch 1947).
    """
    from scipy.stats import t as student  # takes a second, and a single run's page needs none

    variances = table["sd"] ** 2 / table["seeds"]  # of means
    terms = variances**2 / (table["seeds"] - 1)
    both = variances + variances[baselines].to_numpy()
    freedom = both**2 / (terms + terms[baselines].to_numpy())
    interval = (both**0.5 * student.ppf(0.975, freedom)).mask(both == 0, 0.0)
    difference = table[metric] - table[metric][baselines].to_numpy()
    noise = (difference.abs() > interval).map({True: "exceeds", False: "within"})
    table = table.assign(difference=difference, interval=interval, noise=noise)
    table.loc[interval.isna(), "noise"] = "unknown"
    table.loc[baselines == baselines.index, ["interval", "noise"]] = None
    return table.assign(bits_per_char=table["loss"] / math.log(2)) if metric == "loss" else table


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


def read_runs(folder: Path) -> DataFrame:
    """What `read_run` says of all runs under a folder, by name. Raises UserError if none has finished."""
    places = {path.parent for name in ("config.yaml", "error.txt") for path in folder.glob(f"**/{name}")}
    rows = [{"name": one_line(place.relative_to(folder))} | read_run(place) for place in sorted(places)]
    if all(row["problem"] for row in rows):
        raise UserError(f"folder = {folder}: no finished run in it; give a folder under outputs/")
    runs = DataFrame(rows, dtype=object)  # of which no integer becomes a float
    return runs.where(runs.notna(), None).astype(dict.fromkeys([*NUMBERS, "tokens", "flops"], float))


def read_run(folder: Path) -> dict[str, Any]:
    """A run's settings under their command-line names, and its results under the names of NUMBERS.

    overrides is what was typed, curve has the validation losses by steps taken, tokens and flops are what the
    training took. problem is None, or says why there is no result: it is damaged, or has not finished.
    """
    row, file = {"problem": "not finished", "overrides": {}, "curve": Series(dtype=float)}, "error.txt"
    has_ended = (folder / "result.json").exists()
    try:
        if (folder / file).exists() and not has_ended:
            return row | {"problem": shorten((folder / file).read_text().partition("\n")[0], 500)}
        file = "config.yaml"
        config = json_normalize(yaml.safe_load((folder / file).read_text(encoding="utf-8")))
        row |= config.filter(regex=DECISIVE).to_dict("records")[0]
        file = "run.json"
        row["overrides"] = Run(folder).origin.get("overrides", {})
        file = "metrics.csv"
        row["curve"] = read_metric(folder / file, "val/loss") if (folder / file).exists() else row["curve"]
        file = "result.json"
        return row | read_result(Result.read(folder / file), row) if has_ended else row
    except Exception as error:  # of any kind, as damage is; the other runs are compared all the same
        reason = one_line(error).removeprefix(f"file = {folder / file}: ")
        return {"problem": f"damaged: {file}: {shorten(reason, 200)}"}


def read_result(result: Result, row: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a run, with losses per character: other tokenizers have other losses per token."""
    numbers = {"problem": None} | {name: getattr(result, key, None) for name, key in NUMBERS.items()}
    if row.get("data.tokenizer", "char") != "char" and not isinstance(result, TaskResult):
        scale = result.final_bits_per_char * math.log(2) / result.final_val_loss
        best = None if result.best_val_loss is None else scale * result.best_val_loss
        numbers |= {"curve": scale * row["curve"], "loss": best}
    sizes = ("data.batch_size", "model.context_length", "trainer.accumulate_grad_batches")
    tokens, flops = result.step * math.prod(row.get(key) or math.nan for key in sizes), math.nan
    with contextlib.suppress(TypeError, ValueError):  # the settings of another version
        model = {key.removeprefix("model."): row[key] for key in row if key.startswith("model.")}
        flops = tokens * ModelConfig(**model).flops_per_token()
    return numbers | {"tokens": tokens, "flops": flops}


def read_metric(path: Path, name: str) -> Series:
    """A column of a metrics.csv by steps taken (the file counts from 0), empty if nothing has logged it."""
    metrics = read_csv(path)
    return metrics.set_index(metrics["step"] + 1).get(name, Series(dtype=float)).astype(float).dropna()


def show(value: Any) -> str:
    """A value in a table or picture: 2, 0.0003, 1.61M, gpt1; nothing for one that is not known."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        text = one_line(value)
        return text if len(text) <= 24 else f"...{text[-21:]}"  # the end of a path tells most
    if isinstance(value, int) and abs(value) < 100_000:
        return str(value)
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}" if abs(value) >= 10 else f"{value:.4g}"
