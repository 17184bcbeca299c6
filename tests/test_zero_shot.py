"""What a language model knows of a task by its likelihoods alone."""

import json
from pathlib import Path

import pytest
from test_finetune_tasks import play

from conftest import TINY, make_model
from gpt.finetune.model import Classifier, collate, to_sequences
from gpt.finetune.predict import zero_shot_accuracy
from gpt.finetune.tasks import TASKS, Example, Task
from gpt.tokenizer import CharTokenizer

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


def test_callback_logs_each_task_and_changes_nothing_else(call):
    Path("play.txt").write_text(play("alpha", 600))
    short, losses = [*TINY, "data.path=play.txt", "trainer.max_steps=4", "logger=csv"], []
    for number, callbacks in enumerate((["callbacks=zero_shot", "callbacks.zero_shot.examples=10"], [])):
        code, _, err = call(*short, f"hydra.run.dir=run{number}", *callbacks)
        assert code == 0, err
        losses.append(json.loads(Path(f"run{number}", "result.json").read_text())["final_val_loss"])
    assert losses[0] == losses[1]
    header = Path("run0", "metrics.csv").read_text().partition("\n")[0].split(",")
    assert {f"zero_shot/{name}" for name in TASKS} <= set(header)


def test_what_cannot_be_asked_is_one_line(call, text):
    code, _, err = call(*TINY, f"data.path={text}", "callbacks=zero_shot", "hydra.run.dir=run")
    assert code == 2
    assert "give a play" in err
    assert not Path("run").exists()
