"""Tasks with labels: four that are made from a play, one for each kind in [G] section 3.3, and any table."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np

from gpt.config import TaskConfig
from gpt.errors import UserError, shorten

if TYPE_CHECKING:
    import pandas as pd

# How many texts an example of each kind has (3: or more), and what they are
KINDS = {"classification": 1, "entailment": 2, "similarity": 2, "choice": 3}
TEXTS = {1: "one text", 2: "two texts", 3: "a text and two candidates or more"}
# A line that ends in a colon after a blank line, as in "\n\nFirst Citizen:\n". No name is as long as a verse
HEADING = re.compile(r"(?:\A|(?<=\n\n))([^\n:]{1,40}):\n")
MARKS = (".", "?", "!")
CANDIDATES = 4  # of next_speech
BEFORE = 2  # speeches that reply and next_speech show of what was said before
NEAR = 20  # speeches: those no further away are taken to be of the same scene


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
        train = make_examples(config.name, train_text, [seed, 0])  # no pre-training sees `test_text`
        task = Task(config.name, kind, labels, train, make_examples(config.name, test_text, [seed, 1]))
    else:
        raise UserError(f"task = {shorten(config.name)}: unknown; choose one of {', '.join(TASKS)}, csv")
    train, test = shuffled(task.train, seed, config.max_train), shuffled(task.test, seed, config.max_test)
    return task._replace(train=train, test=test)


def make_examples(name: str, text: str, seed: Sequence[int]) -> list[Example]:
    """The examples of one of TASKS that a text makes. Raises UserError if there are fewer than two."""
    examples = TASKS[name][2](parse_speeches(text), np.random.default_rng(seed))
    if len(examples) < 2:
        reason = f"a split of {len(text):,} characters makes {len(examples)} examples"
        raise UserError(f"task = {name}: {reason}; give a play, where speeches follow their speaker's name")
    return examples


def shuffled(examples: Sequence[Example], seed: int, limit: int) -> list[Example]:
    """The examples in an order that the seed decides, at most `limit` of them (0: all)."""
    order = np.random.default_rng([seed, len(examples)]).permutation(len(examples))
    return [examples[number] for number in order[: limit or None]]


class Speech(NamedTuple):
    """What one person says in one go."""

    speaker: str
    text: str  # without the speaker's name, and without blank lines around it

    @property
    def opening(self) -> str:
        """The speaker's name and the first line, as they stand in the play."""
        return f"{self.speaker}:\n{self.text.splitlines()[0]}"


def parse_speeches(text: str) -> list[Speech]:
    """The speeches of a play, 7,097 in Tiny Shakespeare. Names with nothing after them are left out."""
    _, *parts = HEADING.split(text)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return [Speech(speaker, said.strip("\n")) for speaker, said in pairs if said.strip()]


def mark(speeches: Sequence[Speech], random: np.random.Generator) -> list[Example]:
    """With which mark did the speech end? The mark is taken away. Each mark is equally frequent."""
    texts = [speech.text for speech in speeches if len(speech.text) > 1]
    of_each = [[text[:-1] for text in texts if text.endswith(mark)] for mark in MARKS]
    fewest, examples = min(map(len, of_each)), []
    for label, those in enumerate(of_each):
        examples += [Example((those[n],), label) for n in random.permutation(len(those))[:fewest]]
    return examples


def reply(speeches: Sequence[Speech], random: np.random.Generator) -> list[Example]:
    """Does the opening answer what was said before? Half do, the others are as long, from elsewhere."""
    examples, ranks = [], length_ranks(speeches)
    for place in range(1, len(speeches)):
        label = int(random.integers(2))
        other = place if label else elsewhere(ranks, place, 1, random)[0]
        examples.append(Example((said_before(speeches, place), speeches[other].opening), label))
    return examples


def said_before(speeches: Sequence[Speech], place: int) -> str:
    """The BEFORE openings before a speech (contexts have no room for more), so that a name comes next."""
    return "".join(f"{speech.opening}\n\n" for speech in speeches[max(0, place - BEFORE) : place])


def same_speaker(speeches: Sequence[Speech], random: np.random.Generator) -> list[Example]:
    """Are both speeches by one person? They always are of one scene, so that its subject does not tell."""
    examples = []
    for place, speech in enumerate(speeches):
        near = speeches[max(0, place - NEAR) : place]
        same = [other.text for other in near if other.speaker == speech.speaker]
        different = [other.text for other in near if other.speaker != speech.speaker]
        if same and different:
            others = same if (label := int(random.integers(2))) else different
            examples.append(Example((others[random.choice(len(others))], speech.text), label))
    return examples


def next_speech(speeches: Sequence[Speech], random: np.random.Generator) -> list[Example]:
    """Which of four speeches comes next? The others are about as long, from elsewhere, as in `reply`."""
    if len(speeches) <= 2 * NEAR + CANDIDATES:
        return []
    examples, ranks = [], length_ranks(speeches)
    for place in range(1, len(speeches)):
        candidates = [speeches[other].opening for other in elsewhere(ranks, place, CANDIDATES - 1, random)]
        label = int(random.integers(CANDIDATES))
        candidates.insert(label, speeches[place].opening)
        examples.append(Example((said_before(speeches, place), *candidates), label))
    return examples


def length_ranks(speeches: Sequence[Speech]) -> np.ndarray:
    """The place of each speech in the order of how long their openings are."""
    return np.argsort(np.argsort([len(speech.opening) for speech in speeches], kind="stable"))


def elsewhere(ranks: np.ndarray, place: int, count: int, random: np.random.Generator) -> list[int]:
    """`count` speeches more than NEAR away from `place`, drawn from the 16 that are nearest in length."""
    longer = ranks - ranks[place]
    by_distance = np.argsort(2 * abs(longer) + (longer > 0))  # of two that are as near, the shorter one first
    far = by_distance[abs(by_distance - place) > NEAR][:16]
    if len(far) < count:  # any that are not next to it, some perhaps repeated
        far = np.flatnonzero(abs(np.arange(len(ranks)) - place) > 1)
    return random.choice(far, count, replace=len(far) < count).tolist()


TASKS: dict[str, tuple[str, tuple[str, ...], Callable[..., list[Example]]]] = {
    "mark": ("classification", MARKS, mark),
    "reply": ("entailment", ("no", "yes"), reply),
    "same_speaker": ("similarity", ("no", "yes"), same_speaker),
    "next_speech": ("choice", tuple(str(number) for number in range(1, CANDIDATES + 1)), next_speech),
}


def read_table(config: TaskConfig, seed: int) -> Task:
    """The task in the CSV or TSV file `config.path`. Raises UserError for anything in it that makes none."""
    if not config.path or not config.columns or not config.label:
        raise UserError("task = csv: needs more: task.path=my.csv task.columns=[text] task.label=label")
    pair = "similarity" if config.symmetric else "entailment"
    kind = config.kind or {1: "classification", 2: pair}.get(len(config.columns), "choice")
    if min(len(config.columns), 3) != (wanted := KINDS[kind]):
        raise UserError(f"task.columns = {config.columns}: {kind} is about {TEXTS[wanted]}")
    table = read_cells(config)
    given = table[config.label]
    labels = tuple(config.columns[1:] if kind == "choice" else sorted(set(given)))
    numbers = {label: number for number, label in enumerate(labels)}
    if kind == "choice":  # labelled with the name of the right candidate's column, or with its number
        numbers = {str(number): number - 1 for number in range(1, len(labels) + 1)} | numbers
        check_cells(config, given, given.isin(list(numbers)), "give a candidate's column or its number")
    elif len(often := given.value_counts(ascending=True)) < 2 or often.iloc[0] == 1:
        found = shorten(", ".join(f"{label} ({count})" for label, count in often.items()))
        refuse(config, f"column {config.label} has {found}; give two labels or more, each at least twice")
    answers = given.map(numbers).to_numpy()
    examples = [*map(Example, table[config.columns].itertuples(index=False, name=None), answers.tolist())]
    train, test = ([examples[row] for row in rows] for rows in split_rows(config, table, answers, seed))
    if not train or not test:
        refuse(config, f"{len(train)} rows for training and {len(test)} for testing")
    return Task(Path(config.path).stem, kind, labels, train, test)


def read_cells(config: TaskConfig) -> "pd.DataFrame":
    """The file's cells as they are written, be they NA or numbers. None of those that are used is empty."""
    path = str(config.path)
    delimiter = "\t" if path.lower().endswith((".tsv", ".tab")) else ","
    try:
        import pandas as pd  # here, so that training on plays does not wait for it

        table = pd.read_csv(path, sep=delimiter, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ImportError:
        refuse(config, 'reading a table needs pandas; run pip install -e ".[finetune]"')
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or rows of more cells than the others
        refuse(config, f"no CSV file in UTF-8 ({shorten(error, 100)})")
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what is too much for names of the rows
        refuse(config, "rows have more cells than there are names of columns; put quotes around texts")
    if table.empty:
        refuse(config, "no rows below the names of its columns")
    for name in filter(None, [*config.columns, config.label, config.split_column]):
        if name not in table:
            refuse(config, f"no column {shorten(name)}; it has {shorten(', '.join(table))}")
        check_cells(config, table[name], table[name].str.strip() != "", "fill it in, or remove the row")
    return table


def split_rows(config: TaskConfig, table: "pd.DataFrame", answers: np.ndarray, seed: int) -> list[np.ndarray]:
    """The rows for training and for testing, as the split column says, or drawn, of every label alike."""
    if config.split_column is not None:
        parts = table[config.split_column]
        check_cells(config, parts, parts.isin(["train", "test"]), "it must be train or test")
        return [np.flatnonzero(parts == part) for part in ("train", "test")]
    random, parts = np.random.default_rng([seed, 2]), []
    for label in np.unique(answers):
        rows = random.permutation(np.flatnonzero(answers == label))
        count = min(max(round(config.test_fraction * len(rows)), 1), len(rows) - 1)
        parts.append((rows[count:], rows[:count]))
    return [np.concatenate(part) for part in zip(*parts, strict=True)]


def check_cells(config: TaskConfig, cells: "pd.Series", are_right: "pd.Series", advice: str) -> None:
    """Raises UserError about the first cell of a column that is not right. In its row 1 are the names."""
    if not are_right.all():
        row = int(are_right.argmin())
        found = shorten(cells[row]) or "nothing"
        refuse(config, f"row {row + 2} has {found} in column {cells.name}; {advice}")


def refuse(config: TaskConfig, reason: str) -> NoReturn:
    raise UserError(f"task.path = {shorten(config.path, 200)}: {reason}") from None
