"""What a language model knows of a task by its likelihoods alone."""

import json

import pytest
import torch
from test_finetune_tasks import play

from conftest import TINY, make_model
from gpt.finetune.task import Example, Task
from gpt.finetune.zero_shot import mean_log_likelihoods, zero_shot_accuracy
from gpt.tokenizer import CharTokenizer

TOKENIZER = CharTokenizer.from_text("\n .?abcdefgh")  # as many as conftest's models have


@pytest.fixture
def model():
    torch.manual_seed(0)
    return make_model("modern", vocab_size=len(TOKENIZER), context_length=12)


def test_likelihood_is_that_of_the_second_text_alone(model):
    pairs = [("ab", "cde"), ("a", "b"), ("h" * 30, "gg"), ("a", "abcdefgh" * 3)]
    found = mean_log_likelihoods(model, TOKENIZER, pairs)
    model.eval()
    for (first, second), value in zip(pairs, found, strict=True):
        second = second[:12]
        ids = TOKENIZER.encode((first + second)[-13:] if len(first) + len(second) > 13 else first + second)[None]
        log_p = model(ids[:, :-1]).log_softmax(-1).gather(-1, ids[:, 1:, None])[0, -len(second) :]
        assert value == pytest.approx(log_p.mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "texts", "labels"),
    [
        ("classification", ("ab",), (".", "?")),
        ("choice", ("ab", "c", "de", "f"), ("1", "2", "3")),
        ("entailment", ("ab", "cd"), ("no", "yes")),
    ],
)
def test_right_answers_are_counted(model, kind, texts, labels):
    examples = [Example(texts, label) for label in range(len(labels))]  # the same question with every answer
    accuracy = zero_shot_accuracy(model, TOKENIZER, Task("t", kind, labels, [], examples))
    assert accuracy == (1 / 2 if kind == "entailment" else 1 / len(labels))


def test_callback_logs_each_task_and_changes_nothing_else(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "play.txt").write_text(play("alpha", 600))
    losses = []
    for callbacks in (["callbacks=zero_shot", "callbacks.zero_shot.examples=10"], []):
        code, _, err = call(
            *TINY, "data.path=play.txt", "trainer.max_steps=4", "logger=csv", f"hydra.run.dir=run{len(losses)}", *callbacks
        )
        assert code == 0, err
        losses.append(json.loads((tmp_path / f"run{len(losses)}" / "result.json").read_text())["final_val_loss"])
    assert losses[0] == losses[1]
    header = (tmp_path / "run0" / "metrics.csv").read_text().partition("\n")[0]
    assert {f"zero_shot/{name}" for name in ("mark", "reply", "same_speaker", "next_speech")} <= set(header.split(","))


def test_text_that_is_no_play_is_one_line(call, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(*TINY, f"data.path={text}", "callbacks=zero_shot", "hydra.run.dir=run")
    assert code == 2
    assert "give a play" in err
    assert not (tmp_path / "run").exists()
