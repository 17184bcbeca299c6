"""A task from anyone's table: a CSV or TSV file with texts and labels."""

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from gpt.config import TaskConfig
from gpt.errors import UserError, shorten
from gpt.finetune.task import KINDS, Example, Task

if TYPE_CHECKING:
    import pandas as pd

PARTS = ["train", "test"]  # what the split column says


def read_task(config: TaskConfig, seed: int) -> Task:
    """The task in the file `config.path`. Without a split column, a share of each label is drawn for testing.

    A choice is labelled with the name of the right candidate's column, or with its number from 1 on.
    Raises UserError for a file that cannot be read, a missing column, an empty cell, or useless labels.
    """
    if not config.path or not config.columns or not config.label:
        advice = "set for instance task.path=my.csv task.columns=[text] task.label=label"
        raise UserError(f"task = csv: needs more; {advice}")
    kind, table = choose_kind(config), read_table(config)
    labels, numbers = number_labels(config, kind, table[config.label])
    texts = table[config.columns].itertuples(index=False, name=None)
    examples = [Example(of_one, number) for of_one, number in zip(texts, numbers, strict=True)]
    if config.split_column is None:
        train, test = split_each_label(examples, config.test_fraction, seed)
    else:
        parts = table[config.split_column]
        refuse_first(config, "split_column", parts[~parts.isin(PARTS)], "it must be train or test")
        train, test = ([examples[row] for row in np.flatnonzero(parts == part)] for part in PARTS)
        if not train or not test:
            refuse(config, "split_column", "all rows are of one part; give train and test")
    return Task(Path(config.path).stem, kind, labels, train, test)


def choose_kind(config: TaskConfig) -> str:
    """The kind of the task, which the number of text columns has to fit."""
    pair = "similarity" if config.symmetric else "entailment"
    kind = config.kind or {1: "classification", 2: pair}.get(len(config.columns), "choice")
    least, most = KINDS[kind]
    if not least <= len(config.columns) <= most:
        wanted = {1: "one column", 2: "two columns"}.get(most, "a context and its candidates")
        refuse(config, "columns", f"{kind} needs {wanted}; change the columns or task.kind")
    return kind


def read_table(config: TaskConfig) -> "pd.DataFrame":
    """The file as texts. Rows are numbered as in a spreadsheet, where the columns' names are row 1."""
    try:
        import pandas as pd  # here, so that training on plays does not wait for it
    except ImportError:
        refuse(config, "path", 'reading a table needs pandas; run pip install -e ".[finetune]"')
    delimiter = "\t" if str(config.path).lower().endswith((".tsv", ".tab")) else ","
    try:
        with open(str(config.path), encoding="utf-8-sig", newline="") as file:
            # Each cell as it is written, be it NA or a number
            table = pd.read_csv(file, sep=delimiter, dtype=str, keep_default_na=False, index_col=False)
    except OSError as error:
        refuse(config, "path", f"{error.strerror}; give a CSV or TSV file")
    except ValueError as error:  # what pandas does not understand, or what is not UTF-8
        refuse(config, "path", f"not a CSV file in UTF-8 ({shorten(error, 100)}); repair or convert it")
    table.index += 2
    for name in filter(None, [*config.columns, config.label, config.split_column]):
        if name not in table:
            refuse(config, "path", f"no column {shorten(name)}; it has {shorten(', '.join(table))}")
        empty = table[name][table[name].str.strip() == ""]
        refuse_first(config, "path", empty, "fill it in, or remove the row")
    if table.empty:
        refuse(config, "path", "it has no rows below the names of its columns; give examples")
    return table


def number_labels(config: TaskConfig, kind: str, given: "pd.Series") -> tuple[tuple[str, ...], list[int]]:
    """The names of the labels, and for each row the number of its label.

    Raises UserError for a label that is no candidate, one that occurs once, and a single label for all.
    """
    labels = tuple(config.columns[1:] if kind == "choice" else sorted(set(given)))
    numbers = {label: number for number, label in enumerate(labels)}
    if kind == "choice":
        numbers = {str(number + 1): number for number in numbers.values()} | numbers
        wrong = given[~given.isin(list(numbers))]
        refuse_first(config, "label", wrong, "give a candidate's column or its number")
    elif once := [label for label, count in given.value_counts().items() if count == 1]:
        reason = f"{shorten(once[0])} occurs once, which is not enough to learn and test it"
        refuse(config, "label", f"{reason}; give more examples, or remove it")
    if len(labels) < 2:
        reason = f"{shorten(labels[0])} everywhere, nothing to learn"
        refuse(config, "label", f"{reason}; give two labels or more")
    return labels, [numbers[label] for label in given]


def split_each_label(examples: list[Example], test_fraction: float, seed: int) -> list[list[Example]]:
    """Training and test examples, with the same share of every label in both, as the seed decides."""
    random, train, test = np.random.default_rng([seed, 2]), list[Example](), list[Example]()
    for label in sorted({example.label for example in examples}):
        alike = [example for example in examples if example.label == label]
        count = min(max(round(test_fraction * len(alike)), 1), len(alike) - 1)
        order = random.permutation(len(alike))
        test += [alike[number] for number in order[:count]]
        train += [alike[number] for number in order[count:]]
    return [train, test]


def refuse(config: TaskConfig, setting: str, reason: str) -> NoReturn:
    """Raise the UserError that says why one of the task's settings cannot be used."""
    raise UserError(f"task.{setting} = {shorten(getattr(config, setting), 200)}: {reason}") from None


def refuse_first(config: TaskConfig, setting: str, wrong: "pd.Series", advice: str) -> None:
    """Raise a UserError about the first of some cells of a column that are wrong, if there are any."""
    if not wrong.empty:
        found = shorten(wrong.iloc[0]) or "nothing"
        refuse(config, setting, f"row {wrong.index[0]} has {found} in column {wrong.name}; {advice}")
