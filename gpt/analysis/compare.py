"""Run folders as tables of pandas: a row for each run, or a line for runs that differ in their seed alone."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.ticker import EngFormatter
from pandas import DataFrame, Series, concat, read_csv, to_numeric

from gpt.config import INDIFFERENT, RunConfig, short_names
from gpt.errors import UserError, did_you_mean, one_line, shorten
from gpt.run import Run, read_config

# Columns with results, and their names in result.json. Losses are in nats per character, of tasks per example
NUMBERS = {"loss": "best_val_loss", "steps": "step", "seconds": "seconds", "parameters": "parameters"}
NUMBERS |= {"chars_per_second": "chars_per_second", "accuracy": "test_accuracy"}
NUMBERS |= {"majority": "majority_accuracy", "naive_bayes": "naive_bayes_accuracy"}
COSTS = ["seconds", "parameters", "chars_per_second"]
MEANS = {"loss": ["loss", *COSTS], "accuracy": ["accuracy", "majority", "naive_bayes", "seconds"]}
UNTOLD = INDIFFERENT | {"seed"}  # settings that tell no lines apart
# Typed like choices, which stand for settings, but these do not
SILENT = ("callbacks", "hydra", "init", "logger", "name", "resume", "seed")
SEED = r"(^|[/,_])seed[=-]\d+(-\d+)?(?=[,_]|$)"  # in a run's name


class Comparison(NamedTuple):
    """Runs of one kind and their table, in which a line stands for runs that differ in their seed alone."""

    kind: str  # language models or a task, and the text that they were trained on
    metric: str  # loss, or accuracy for a task
    table: DataFrame  # best first: the columns run, `settings`, `metric`, and what else was found
    settings: list[str]  # the columns by which lines are told apart
    runs: DataFrame  # a row for each run, as `read_runs` has it; its column `line` is the index of the table
    baseline: int  # the line with which the others are compared


def compare_runs(folder: Path, baseline: str = "") -> tuple[list[Comparison], list[str]]:
    """The runs under a folder, compared within each kind of them, and why others are left out.

    Differences are to the best line of a kind or to the one that `baseline` describes: what varies, as
    n_layer=2,arch=gpt1, or a part of a run's name. Raises UserError if there is no run, or no such line, or
    if there are several in one table.
    """
    runs, left_out = read_runs(folder)
    first = runs.groupby(["line", "seed"])["name"].transform("first")
    is_copy = runs["name"] != first  # which would make the noise seem smaller
    left_out += list((runs["name"] + ": has the settings and the seed of " + first)[is_copy])
    kinds = [compare_kind(some, folder) for _, some in runs[~is_copy].groupby(["kind", "text"])]
    described = [find_lines(found, baseline) if baseline else [found.baseline] for found in kinds]
    if (count := max(map(len, described))) != 1:
        reason = f"describes {count} lines of a table"
        advice = "write what varies, as n_layer=2,n_head=4, or a run's name"
        raise UserError(f"--baseline = {shorten(baseline)}: {reason}; {advice}")
    lines = [some[0] if some else found.baseline for found, some in zip(kinds, described, strict=True)]
    return list(map(add_differences, kinds, lines)), left_out


def compare_kind(runs: DataFrame, folder: Path) -> Comparison:
    """The table of runs of one kind, best first."""
    metric = runs["metric"].iloc[0]
    lines, settings = runs.groupby("line"), tell_apart(runs)
    name, size = lines["name"].first(), lines.size()
    common = name.str.replace(SEED, "", regex=True)
    common = common.mask(common == "", folder.absolute().name)  # of a sweep over seeds alone
    columns = {"run": name.where(size == 1, common)} | settings | {"sd": lines[metric].std(), "seeds": size}
    table = DataFrame(columns).join(lines[MEANS[metric]].mean())
    table = table.sort_values(metric, ascending=metric == "loss", kind="stable")
    if metric == "loss":
        table["bits_per_char"] = table["loss"] / math.log(2)
    kind = "{kind} on {place} ({text})".format(**runs.iloc[0])
    return Comparison(kind, metric, table, list(settings), runs, table.index[0])


def tell_apart(runs: DataFrame) -> dict[str, Series]:
    """The settings that tell lines apart: what was typed and varies, in the order in which it was typed.

    A choice such as model/arch=gpt1 stands for all that it sets. Where what was typed is not enough, whatever
    else varies is there too.
    """
    lines = runs.drop_duplicates("line").set_index("line")
    settings = DataFrame(list(lines["settings"]), lines.index, dtype=object)
    typed = DataFrame(list(lines["overrides"]), lines.index, dtype=object)
    choices = [key for key in typed if "." not in key and key.partition("/")[0] not in SILENT]
    values = settings.fillna("null").join(typed[choices].fillna("-").map(str))
    texts = values.map(json.dumps)  # in which 1 is neither true nor [1]
    texts = texts.loc[:, texts.nunique() > 1]
    shown = [key for key in typed if key in texts]
    if not shown or texts[shown].duplicated().any():
        shown = list(dict.fromkeys([*shown, *texts]))
    return dict(zip(short_names(shown), (values[key] for key in shown), strict=True))


def find_lines(found: Comparison, text: str) -> list[int]:
    """The lines that a text describes, as `compare_runs` has it."""
    told = captions(found.table, found.settings, "=").str.split(", ").map(set(text.split(",")).issubset)
    is_named = found.runs["name"].str.contains(text, regex=False)
    return list(told.index[told]) or list(found.runs["line"][is_named].unique())


def captions(table: DataFrame, names: Sequence[str], sign: str = " ") -> Series:
    """What each line is: "n_layer 2, n_head 4"."""
    rows = table[list(names)].map(show).to_dict("index")
    return Series({line: ", ".join(map(sign.join, row.items())) for line, row in rows.items()}, dtype=str)


def add_differences(found: Comparison, line: int) -> Comparison:
    """The same with each line's difference to one of them, its interval, and if it exceeds the noise.

    The interval is half the 95 % confidence interval of a difference of means (Welch 1947).
    """
    from scipy.stats import t as student  # takes a second, and a single run's page needs none

    table, values = found.table, found.table[found.metric]
    variances = table["sd"] ** 2 / table["seeds"]  # of means
    terms = variances**2 / (table["seeds"] - 1)
    both = variances + variances[line]
    freedom = both**2 / (terms + terms[line])
    interval = (both**0.5 * student.ppf(0.975, freedom)).mask(both == 0, 0.0)
    difference = values - values[line]
    noise = (difference.abs() > interval).map({True: "exceeds", False: "within"})
    noise = noise.mask(interval.isna(), "unknown")
    table = table.assign(difference=difference, interval=interval, noise=noise)
    table.loc[line, ["interval", "noise"]] = None
    return found._replace(table=table, baseline=line)


def whole_table(kinds: Sequence[Comparison], sort: str = "", columns: Sequence[str] = ()) -> DataFrame:
    """The tables of all kinds in one, with a column `kind`, in the order of a column, numbers before texts.

    Raises UserError if it does not have this column, or one of `columns`.
    """
    table = concat({found.kind: found.table for found in kinds}, names=["kind"]).reset_index("kind")
    for name in filter(None, [sort, *columns]):
        if name not in table:
            raise UserError(f"column = {shorten(name)}: not in the table; {did_you_mean(name, table)}")
    if not sort:
        return table
    texts = table[sort].map(str)
    keys = DataFrame({"number": to_numeric(texts, errors="coerce"), "text": texts})
    return table.loc[keys.sort_values(["number", "text"], kind="stable").index]


def read_runs(folder: Path) -> tuple[DataFrame, list[str]]:
    """What `read_run` says of each run under a folder that has ended, by name, and why others are left out.

    A column `line` is equal for runs of one kind that differ in their seed alone. Raises UserError if there
    is no run.
    """
    places = {path.parent for name in ("config.yaml", "error.txt") for path in folder.glob(f"**/{name}")}
    rows, left_out = [], list[str]()
    for place in sorted(places):
        name = one_line(place.relative_to(folder))
        try:
            row = read_run(place)
            if row[row["metric"]] is None:
                raise UserError("no best val/loss; keep callbacks.best, and some text for validation")
            rows.append({"name": name} | row)
        except Exception as error:  # of any kind, as damage is; the other runs are compared all the same
            left_out.append(f"{name}: {shorten(str(error).replace(f'{place.absolute()}/', ''), 500)}")
    if not rows:
        reason = ", ".join(["no finished run in it", *left_out[:1]])
        raise UserError(f"folder = {folder}: {reason}; give a folder under outputs/")
    runs = DataFrame(rows).astype(dict.fromkeys(NUMBERS, float))
    runs["line"] = runs.groupby(["kind", "text", runs["settings"].map(json.dumps)], sort=False).ngroup()
    return runs, left_out


def read_run(folder: Path) -> dict[str, Any]:
    """A run's settings under their command-line names, and its results under the names of NUMBERS.

    overrides is what was typed, curve has the validation losses by steps taken, tokens and flops are what the
    training took. Losses are per character: other tokenizers have other losses per token. Raises UserError if
    the run has not ended, or is damaged.
    """
    run, error = Run(folder), folder / "error.txt"
    if (result := run.result) is None:
        raise UserError(error.read_bytes().decode().partition("\n")[0] if error.exists() else "not finished")
    measured = result.model_dump(exclude_unset=True)
    numbers: dict[str, Any] = {name: measured.get(key) for name, key in NUMBERS.items()}
    config, origin, scale = RunConfig.from_dict(read_config(folder)), run.origin, 1.0
    kind, metric, place = "language models", "loss", config.data.path or "Tiny Shakespeare"
    if config.task:
        kind, metric, place = f"task {config.task.name}", "accuracy", config.task.path or place
    elif result.best_val_loss is not None:
        scale = result.final_bits_per_char * math.log(2) / result.final_val_loss
        numbers["loss"] *= scale
    text = f"{origin.get('text_sha256', '?')[:8]}, {config.data.val_fraction:.0%} held out"
    if config.data.val_path is not None:  # then the SHA-256 is of both texts
        text, place = text.partition(",")[0], f"{place}, validated on {config.data.val_path}"
    tokens = result.step * config.tokens_per_batch * config.trainer.accumulate_grad_batches
    return {
        "kind": kind,
        "metric": metric,
        "place": place,
        "text": text,
        "overrides": origin.get("overrides", {}),
        "curve": scale * read_metric(folder / "metrics.csv", "val/loss"),
        "tokens": tokens,
        "flops": tokens * config.model.flops_per_token(),
        "seed": config.seed,
        "tokenizer": config.data.tokenizer,
        "settings": {key: value for key, value in sorted(config.flat().items()) if key not in UNTOLD},
        **numbers,
    }


def read_metric(path: Path, name: str) -> Series:
    """A column of a metrics.csv by steps taken (the file counts from 0), empty if nothing has logged it."""
    if not path.exists():
        return Series(dtype=float)
    try:
        metrics = read_csv(path)
        return metrics.set_index(metrics["step"] + 1).get(name, Series(dtype=float)).astype(float).dropna()
    except (KeyError, ValueError) as error:
        raise UserError(f"file = {path.absolute()}: damaged, {error}") from None


def show(value: Any) -> str:
    """A value in a table or picture: 2, 0.0003, 1.61M, gpt1; nothing for one that is not known."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        text = one_line(value)
        return text if len(text) <= 24 else f"...{text[-21:]}"  # the end of a path tells most
    if abs(value) >= (100_000 if isinstance(value, int) else 1_000):
        return EngFormatter(sep="")(float(f"{value:.3g}"))
    return str(value) if isinstance(value, int) else f"{value:.3g}" if abs(value) >= 10 else f"{value:.4g}"
