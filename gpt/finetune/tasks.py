"""Tasks with labels: four that are made from a play, one for each kind in [G] section 3.3, and any CSV file.

[G] is Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training*. Examples for
training come from the training split of the text and those for testing from the validation split, so no
pre-training has seen a text that is tested.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpt.config import TaskConfig
from gpt.errors import UserError, shorten
from gpt.finetune.csv_tasks import read_task
from gpt.finetune.task import Example, Task

# A line that ends in a colon after a blank line, as in "\n\nFirst Citizen:\n". No name is as long as a verse
HEADING = re.compile(r"(?:\A|(?<=\n\n))([^\n:]{1,40}):\n")
MARKS = (".", "?", "!")
CANDIDATES = 4  # of next_speech
BEFORE = 2  # speeches that reply and next_speech show of what was said before
NEAR = 20  # speeches: those no further away are taken to be of the same scene


def make_task(config: TaskConfig, train_text: str, test_text: str, seed: int) -> Task:
    """The task that `config` names. The seed decides which speeches meet, and the order.

    Raises UserError for an unknown task, and for a text or file that does not make one.
    """
    if config.name == "csv":
        task = read_task(config, seed)
    elif config.name in TASKS:
        kind, labels, _ = TASKS[config.name]
        train = make_examples(config.name, train_text, [seed, 0])
        task = Task(config.name, kind, labels, train, make_examples(config.name, test_text, [seed, 1]))
    else:
        raise UserError(f"task = {shorten(config.name)}: unknown; choose one of {', '.join(TASKS)}, csv")
    train, test = shuffled(task.train, seed, config.max_train), shuffled(task.test, seed, config.max_test)
    return replace(task, train=train, test=test)


def make_examples(name: str, text: str, seed: Sequence[int]) -> list[Example]:
    """The examples of one of TASKS that a text makes. Raises UserError if there are fewer than two."""
    examples = TASKS[name][2](parse_speeches(text), np.random.default_rng(seed))
    if len(examples) < 2:
        reason = f"a split of {len(text):,} characters makes {len(examples)} examples"
        advice = "give a play in which each speech follows its speaker's name"
        raise UserError(f"task = {name}: {reason}; {advice}")
    return examples


def shuffled(examples: Sequence[Example], seed: int, limit: int) -> list[Example]:
    """The examples in an order that the seed decides, at most `limit` of them (0: all)."""
    order = np.random.default_rng([seed, len(examples)]).permutation(len(examples))
    return [examples[number] for number in order[: limit or None]]


@dataclass(frozen=True)
class Speech:
    """What one person says in one go."""

    speaker: str
    text: str  # without the speaker's name, and without blank lines around it

    @property
    def opening(self) -> str:
        """The speaker's name and the first line, as they stand in the play."""
        return f"{self.speaker}:\n{self.text.splitlines()[0]}"


def parse_speeches(text: str) -> list[Speech]:
    """All speeches of a text in the form of Tiny Shakespeare, in order. A text of another form has none.

    Each begins with the speaker's name and a colon on a line of their own, after a blank line. Names with
    nothing after them are left out, and so is what comes before the first name. Tiny Shakespeare has 7,097
    speeches by 299 speakers.
    """
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
    """Does the speech answer what was said before? Half do, the others are of similar length, from elsewhere.

    Of all speeches it shows the name and the first line.
    """
    examples, by_length = [], ByLength(speeches)
    for place in range(1, len(speeches)):
        label = int(random.integers(2))
        other = place if label else by_length.elsewhere(place, 1, random)[0]
        examples.append(Example((said_before(speeches, place), speeches[other].opening), label))
    return examples


def said_before(speeches: Sequence[Speech], place: int) -> str:
    """The openings of the BEFORE speeches before one. A context has no room for several whole speeches.

    It ends with a blank line, as in the play, so that the model expects a name.
    """
    return "".join(f"{speech.opening}\n\n" for speech in speeches[max(0, place - BEFORE) : place])


def same_speaker(speeches: Sequence[Speech], random: np.random.Generator) -> list[Example]:
    """Are both speeches by one person? They always are of one scene, so that its subject does not tell."""
    examples = []
    for place, speech in enumerate(speeches):
        near = range(max(0, place - NEAR), place)
        same = [other for other in near if speeches[other].speaker == speech.speaker]
        different = [other for other in near if speeches[other].speaker != speech.speaker]
        if same and different:
            label = int(random.integers(2))
            other = int(random.choice(same if label else different))
            examples.append(Example((speeches[other].text, speech.text), label))
    return examples


def next_speech(speeches: Sequence[Speech], random: np.random.Generator) -> list[Example]:
    """Which of four speeches comes next? The others are about as long, from elsewhere. As in `reply`."""
    examples, by_length = [], ByLength(speeches)
    if len(speeches) <= 2 * NEAR + CANDIDATES:
        return []
    for place in range(1, len(speeches)):
        candidates = [speeches[other].opening for other in by_length.elsewhere(place, CANDIDATES - 1, random)]
        label = int(random.integers(CANDIDATES))
        candidates.insert(label, speeches[place].opening)
        examples.append(Example((said_before(speeches, place), *candidates), label))
    return examples


class ByLength:
    """Finds speeches whose openings are about as long as that of a given one, and which are far from it."""

    def __init__(self, speeches: Sequence[Speech]) -> None:
        self.order = np.argsort([len(speech.opening) for speech in speeches], kind="stable")
        self.rank = np.argsort(self.order)

    def elsewhere(self, place: int, count: int, random: np.random.Generator) -> list[int]:
        """`count` speeches that are more than NEAR away from `place`, drawn from the 16 nearest in length.

        If there are too few, any that are not next to it, some of them perhaps repeated.
        """
        distances = abs(np.arange(len(self.order)) - self.rank[place])
        by_distance = self.order[np.argsort(distances, kind="stable")]
        far = [int(other) for other in by_distance[: 16 + 2 * NEAR + 1] if abs(other - place) > NEAR][:16]
        if len(far) < count:
            far = [other for other in range(len(self.order)) if abs(other - place) > 1]
        return [int(other) for other in random.choice(far, count, replace=len(far) < count)]


Make = Callable[[Sequence[Speech], np.random.Generator], list[Example]]
TASKS: dict[str, tuple[str, tuple[str, ...], Make]] = {
    "mark": ("classification", MARKS, mark),
    "reply": ("entailment", ("no", "yes"), reply),
    "same_speaker": ("similarity", ("no", "yes"), same_speaker),
    "next_speech": ("choice", tuple(str(number) for number in range(1, CANDIDATES + 1)), next_speech),
}
