"""A task from anyone's table: a CSV or TSV file with texts and labels."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gpt.config import TaskConfig
from gpt.errors import UserError, shorten
from gpt.finetune.task import Example, Task

PARTS = ("train", "test")  # what the split column says
LARGEST_CELL = 2**24  # characters


def read_task(config: TaskConfig, seed: int) -> Task:
    """The task in the file `config.path`. Without a split column, a share of each label is drawn for testing.

    A choice is labelled with the name of the right candidate's column, or with its number from 1 on.
    Raises UserError for a file that cannot be read, a missing column, an empty text, and labels that teach nothing.
    """
    if not config.path or not config.columns or not config.label:
        raise UserError(
            "task = csv: needs more; set for instance task.path=my.csv task.columns=[text] task.label=label"
        )
    kind = choose_kind(config)
    rows = read_rows(config.path, [*config.columns, config.label, *filter(None, [config.split_column])])
    for number, row in rows:
        if empty := [column for column in config.columns if not row[column].strip()]:
            raise UserError(
                f"task.path = {config.path}: line {number} has an empty {empty[0]}; fill it in, or remove the line"
            )
    given = [row[config.label] for _, row in rows]
    labels = tuple(config.columns[1:]) if kind == "choice" else tuple(sorted(set(given)))
    check_labels(config, kind, given, labels, [number for number, _ in rows])
    examples = []
    for (_, row), label in zip(rows, given, strict=True):
        is_number = kind == "choice" and label not in labels
        examples.append(
            Example(
                tuple(row[name] for name in config.columns),
                int(label) - 1 if is_number else labels.index(label),
            )
        )
    if config.split_column is None:
        train, test = split_each_label(examples, config.test_fraction, seed)
    else:
        train, test = (
            [e for e, (_, row) in zip(examples, rows, strict=True) if row[config.split_column] == p]
            for p in PARTS
        )
        if wrong := [
            (number, row[config.split_column])
            for number, row in rows
            if row[config.split_column] not in PARTS
        ]:
            reason = f"line {wrong[0][0]} has the split {shorten(wrong[0][1]) or '(empty)'}"
            raise UserError(f"task.split_column = {config.split_column}: {reason}; it must be train or test")
        if not train or not test:
            raise UserError(
                f"task.split_column = {config.split_column}: all lines are of one part; give train and test"
            )
    return Task(Path(config.path).stem, kind, labels, train, test)


def choose_kind(config: TaskConfig) -> str:
    """The kind of the task, which the number of text columns has to fit."""
    count = len(config.columns)
    pair = "similarity" if config.symmetric else "entailment"
    kind = config.kind or {1: "classification", 2: pair}.get(count, "choice")
    fits = {
        "classification": count == 1,
        "entailment": count == 2,
        "similarity": count == 2,
        "choice": count >= 3,
    }[kind]
    if not fits:
        wanted = {"classification": "one column", "choice": "a context and two candidates or more"}.get(
            kind, "two columns"
        )
        raise UserError(
            f"task.columns = {shorten(config.columns)}: {kind} needs {wanted}; change the columns or task.kind"
        )
    return kind


def read_rows(path: str, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """All rows with the number of the line on which each ends. Raises UserError unless every row has the needed columns."""
    csv.field_size_limit(LARGEST_CELL)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = "\t" if path.lower().endswith((".tsv", ".tab")) else ","
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
            names = reader.fieldnames or []
            if missing := [name for name in needed if name not in names]:
                found = shorten(", ".join(names)) or "none"
                raise UserError(f"task.path = {path}: no column {shorten(missing[0])}; it has {found}")
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise UserError(f"task.path = {shorten(path)}: {error.strerror}; give a CSV or TSV file") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(
            f"task.path = {path}: not a CSV file in UTF-8 ({shorten(error)}); repair or convert it"
        ) from None
    for number, row in rows:
        if any(row[name] is None for name in needed):
            raise UserError(
                f"task.path = {path}: line {number} has too few columns; fill them in, or remove the line"
            )
    if not rows:
        raise UserError(f"task.path = {path}: it has no lines below the names of its columns; give examples")
    return rows


def check_labels(
    config: TaskConfig, kind: str, given: Sequence[str], labels: Sequence[str], lines: Sequence[int]
) -> None:
    """Raises UserError for a label that is no candidate, one that occurs once, or a single label for all."""
    if kind == "choice":
        numbers = {str(number) for number in range(1, len(labels) + 1)}
        for label, line in zip(given, lines, strict=True):
            if label not in numbers and label not in labels:
                reason = f"line {line} has {shorten(label) or '(empty)'}"
                raise UserError(
                    f"task.label = {config.label}: {reason}; give a candidate's column or its number"
                )
        return
    if len(labels) < 2:
        raise UserError(
            f"task.label = {config.label}: {shorten(labels[0])} everywhere, nothing to learn; give two labels or more"
        )
    if once := [label for label, count in Counter(given).items() if count == 1]:
        reason = f"{shorten(once[0]) or '(empty)'} occurs once, which is not enough to learn and test it"
        raise UserError(f"task.label = {config.label}: {reason}; give more examples, or remove it")


def split_each_label(
    examples: Sequence[Example], test_fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Training and test examples, with the same share of every label in both, as the seed decides."""
    random, parts = np.random.default_rng([seed, 2]), ([], [])  # type: ignore[var-annotated]
    for label in sorted({example.label for example in examples}):
        alike = [example for example in examples if example.label == label]
        count = min(max(round(test_fraction * len(alike)), 1), len(alike) - 1)
        for position, number in enumerate(random.permutation(len(alike))):
            parts[position < count].append(alike[number])
    return parts
