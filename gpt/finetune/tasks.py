"""Tasks with labels: four that are made from a play, one for each kind in [G] section 3.3, and any table."""

import csv
import io
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np

from gpt.config import TaskConfig
from gpt.data import print_note
from gpt.errors import UserError, shorten

# How many texts an example of each kind has (3: or more), and what they are
KINDS = {"classification": 1, "entailment": 2, "similarity": 2, "choice": 3}
TEXTS = {1: "one text", 2: "two texts", 3: "a text and two candidates or more"}
# A line that ends in a colon after a blank line, as in "\n\nFirst Citizen:\n". No name is as long as a verse
HEADING = re.compile(r"(?:\A|(?<=\n\n))[^\n:]{1,40}:\n")
# A word, with no mark in it. Without capitals and marks, no form tells whether it stands in its place
WORD = re.compile(r"(?<= )[a-z]{3,}(?![\w'-])")
MARKS = (".", "?", "!")
CANDIDATES = 4  # of which_word
DELIMITERS = ",;\t|:"  # of tables
TRIES = 16  # words that are drawn to find some that differ


class Example(NamedTuple):
    """One or two texts, or a choice's context and candidates, and the number of the right label."""

    texts: tuple[str, ...]
    label: int


class Task(NamedTuple):
    """Examples for training and for testing. An example's label is the place of its name in `labels`."""

    name: str
    kind: str  # one of KINDS
    labels: tuple[str, ...]
    train: list[Example]
    test: list[Example]


def make_task(config: TaskConfig, train_text: str, test_text: str, seed: int) -> Task:
    """The task that `config` names, as the seed draws it. Raises UserError if there is none."""
    if config.name == "csv":
        task = read_table(config, seed)
    elif config.name in TASKS:
        kind, labels, _ = TASKS[config.name]
        train = make_examples(config.name, train_text, [seed, 0])
        known = {example.texts for example in train}  # and no pre-training sees `test_text`
        test = [it for it in make_examples(config.name, test_text, [seed, 1]) if it.texts not in known]
        task = Task(config.name, kind, labels, train, test)
    else:
        raise UserError(f"task = {shorten(config.name)}: unknown; choose one of {', '.join(TASKS)}, csv")
    train, test = shuffled(task.train, seed, config.max_train), shuffled(task.test, seed, config.max_test)
    return task._replace(train=train, test=test)


def make_examples(name: str, text: str, seed: Sequence[int]) -> list[Example]:
    """The examples of one of TASKS that a text makes. Raises UserError if there are fewer than two."""
    examples = TASKS[name][2](text, np.random.default_rng(seed))
    if len(examples) < 2:
        reason = f"a split of {len(text):,} characters makes {len(examples)} examples"
        raise UserError(f"task = {name}: {reason}; give a play, where speeches follow their speaker's name")
    return examples


def shuffled(examples: Sequence[Example], seed: int, limit: int) -> list[Example]:
    """The examples in an order that the seed decides, at most `limit` of them (0: all)."""
    order = np.random.default_rng([seed, len(examples)]).permutation(len(examples))
    return [examples[number] for number in order[: limit or None]]


def parse_speeches(text: str) -> list[str]:
    """The speeches of a play, 7,097 in Tiny Shakespeare, without names. None is empty."""
    said = (part.strip("\n") for part in HEADING.split(text)[1:])
    return [speech for speech in said if speech.strip()]


def mark(text: str, random: np.random.Generator) -> list[Example]:
    """With which mark did the speech end? The mark is taken away. Each mark is equally frequent."""
    texts = [said for said in parse_speeches(text) if len(said) > 1]
    of_each = [[said[:-1] for said in texts if said.endswith(mark)] for mark in MARKS]
    fewest, examples = min(map(len, of_each)), []
    for label, those in enumerate(of_each):
        examples += [Example((those[n],), label) for n in random.permutation(len(those))[:fewest]]
    return examples


def follows(text: str, random: np.random.Generator) -> list[Example]:
    """Is this the line's next word? Half are, and the others are as long, from elsewhere."""
    found = next_words(text, random, 2)
    return [Example((before, words[0]), int(right == 0)) for before, words, right in found]


def which_word(text: str, random: np.random.Generator) -> list[Example]:
    """Which of four words of equal length comes next in the line?"""
    found = next_words(text, random, CANDIDATES)
    return [Example((before, *words), right) for before, words, right in found]


def next_words(text: str, random: np.random.Generator, count: int) -> Iterator[tuple[str, list[str], int]]:
    """For each line its beginning, `count` words of equal length, and which of them comes next.

    That one is drawn among those that WORD describes, and the others among all of these in the text, so that
    how frequent a word is does not tell which one is right.
    """
    lines, of_length = [], defaultdict[int, list[str]](list)
    for line in verses(text):
        third_blank = line.replace(" ", "_", 2).index(" ")
        lines.append((line, list(WORD.finditer(line, third_blank))))
        for match in lines[-1][1]:
            of_length[len(match[0])].append(match[0])
    for line, found in lines:
        if found:
            match, right = found[random.integers(len(found))], int(random.integers(count))
            alike = of_length[len(match[0])]
            drawn = {alike[number]: None for number in random.integers(len(alike), size=TRIES)}
            words = [word for word in drawn if word != match[0]][: count - 1]
            if len(words) == count - 1:
                words.insert(right, match[0])
                yield line[: match.start()].rstrip(), words, right


def same_line(text: str, random: np.random.Generator) -> list[Example]:
    """Do two pairs of words, in either order, come from one line? Half do, one after the other there.

    The second pair of the others is as long, from elsewhere.
    """
    pairs, examples, of_length = [], [], defaultdict[int, list[str]](list)
    for line in verses(text):
        words = line.split(" ")
        start = random.integers(1, len(words) - 3)
        pairs.append((" ".join(words[start : start + 2]), " ".join(words[start + 2 : start + 4])))
        of_length[len(pairs[-1][1])].append(pairs[-1][1])
    for first, second in pairs:
        label, alike = int(random.integers(2)), of_length[len(second)]
        other = second if label else alike[random.integers(len(alike))]
        if label or other != second:
            texts = (first, other) if random.integers(2) else (other, first)
            examples.append(Example(texts, label))
    return examples


def verses(text: str) -> list[str]:
    """The lines of a play that have 28 to 60 characters and six words or more, without speakers' names."""
    lines = (line for said in parse_speeches(text) for line in said.splitlines())
    return [line for line in lines if 28 <= len(line) <= 60 and len(line.split(" ")) >= 6]


TASKS: dict[str, tuple[str, tuple[str, ...], Callable[..., list[Example]]]] = {
    "mark": ("classification", MARKS, mark),
    "follows": ("entailment", ("no", "yes"), follows),
    "same_line": ("similarity", ("no", "yes"), same_line),
    "which_word": ("choice", tuple(str(number) for number in range(1, CANDIDATES + 1)), which_word),
}


def read_table(config: TaskConfig, seed: int) -> Task:
    """The task in the CSV or TSV file `config.path`. Raises UserError for anything in it that makes none."""
    if not config.path or not config.columns or not config.label:
        raise UserError("task = csv: needs more: task.path=my.csv task.columns=[text] task.label=label")
    if config.label in config.columns:
        raise UserError(f"task.label = {shorten(config.label)}: also one of task.columns; name another")
    pair = "similarity" if config.symmetric else "entailment"
    kind = config.kind or {1: "classification", 2: pair}.get(len(config.columns), "choice")
    if min(len(config.columns), 3) != (wanted := KINDS[kind]):
        raise UserError(f"task.columns = {config.columns}: {kind} is about {TEXTS[wanted]}")
    rows = read_rows(config)
    given = [row[config.label].strip() for row in rows]
    if count := sum(label != row[config.label] for label, row in zip(given, rows, strict=True)):
        print_note(f"task.path = {shorten(config.path, 200)}: blanks around {count:,} labels are left out")
    labels = tuple(config.columns[1:] if kind == "choice" else sorted(set(given)))
    numbers = {label: number for number, label in enumerate(labels)}
    if kind == "choice":  # labelled with the name of the right candidate's column, or with its number
        numbers = {str(number): number - 1 for number in range(1, len(labels) + 1)} | numbers
        check_cells(config, config.label, given, numbers, "give a candidate's column or its number")
    elif len(often := Counter(given).most_common()[::-1]) < 2 or often[0][1] == 1:
        found = shorten(", ".join(f"{label} ({count})" for label, count in often))
        refuse(config, f"column {config.label} has {found}; give two labels or more, each at least twice")
    answers = [numbers[label] for label in given]
    texts = (tuple(row[name] for name in config.columns) for row in rows)
    examples = [*map(Example, texts, answers)]
    train, test = ([examples[row] for row in part] for part in split_rows(config, rows, answers, seed))
    if not train or not test:
        refuse(config, f"{len(train)} rows for training and {len(test)} for testing")
    return Task(Path(config.path).stem, kind, labels, train, test)


def read_rows(config: TaskConfig) -> list[dict[str, str]]:
    """The file's rows by the names in its first line, which also shows what separates its cells.

    Cells are as they are written, be they NA or numbers, and none of those that are used is empty.
    """
    path = Path(str(config.path))
    try:
        text = path.read_bytes().decode("utf-8-sig")
        delimiters = "\t" if path.suffix == ".tsv" else DELIMITERS
        found = csv.Sniffer().sniff(text.partition("\n")[0], delimiters)
        lines, blanks = io.StringIO(text, newline=""), found.skipinitialspace
        csv.field_size_limit(2**31 - 1)  # a text may be longer than the default
        reader = csv.DictReader(lines, restval="", delimiter=found.delimiter, skipinitialspace=blanks)
        names = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        table = [row for row in reader if None in row or any(map(str.strip, row.values()))]
    except UnicodeDecodeError as error:
        refuse(config, f"not UTF-8 at byte {error.start}; save it as UTF-8")
    except OSError as error:
        refuse(config, f"{error.strerror}; give a CSV file")
    except csv.Error as error:
        refuse(config, f"no CSV file ({shorten(error, 100)}); its first line has to name two columns or more")
    if long := [number for number, row in enumerate(table, start=2) if None in row]:
        refuse(config, f"row {long[0]} has more cells than there are columns; put quotes around texts")
    if not table:
        refuse(config, "no rows below the names of its columns")
    for name in filter(None, [*config.columns, config.label, config.split_column]):
        if names.count(name) != 1:
            many = "several columns" if name in names else "no column"
            refuse(config, f"{many} {shorten(name)}; it has {shorten(', '.join(names))}")
        filled = [row[name].strip() for row in table]
        check_cells(config, name, filled, set(filled) - {""}, "fill it in, or remove the row")
    return table


def split_rows(
    config: TaskConfig, rows: list[dict[str, str]], answers: list[int], seed: int
) -> list[np.ndarray]:
    """The rows for training and for testing, as the split column says, or drawn, of every label alike."""
    if config.split_column is not None:
        parts = [row[config.split_column] for row in rows]
        check_cells(config, config.split_column, parts, {"train", "test"}, "it must be train or test")
        return [np.flatnonzero(np.array(parts) == part) for part in ("train", "test")]
    random, drawn = np.random.default_rng([seed, 2]), []
    for label in np.unique(answers):
        numbers = random.permutation(np.flatnonzero(np.array(answers) == label))
        count = min(max(round(config.test_fraction * len(numbers)), 1), len(numbers) - 1)
        drawn.append((numbers[count:], numbers[:count]))
    return [np.concatenate(part) for part in zip(*drawn, strict=True)]


def check_cells(
    config: TaskConfig, name: str, cells: Sequence[str], right: Container[str], advice: str
) -> None:
    """Raises UserError about the first cell of a column that is not right. In its row 1 are the names."""
    for row, cell in enumerate(cells, start=2):
        if cell not in right:
            refuse(config, f"row {row} has {shorten(cell) or 'nothing'} in column {name}; {advice}")


def refuse(config: TaskConfig, reason: str) -> NoReturn:
    raise UserError(f"task.path = {shorten(config.path, 200)}: {reason}") from None
