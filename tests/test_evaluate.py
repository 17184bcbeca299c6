"""Evaluation finds the losses of a run's result to the last digit; several models are averaged."""

import json
import math
import re
import shlex
from pathlib import Path

import pytest
import torch

import evaluate
import sample
from conftest import make_model, read_last, read_result
from gpt.checkpoint import load
from gpt.ensemble import Ensemble
from gpt.errors import UserError


@pytest.mark.parametrize("settings", ["", "callbacks=ema callbacks.ema.decay=0.5"], ids=["plain", "averaged"])
def test_evaluate_prints_the_result_to_the_last_digit(succeed, settings, precision, capsys):
    succeed("trainer.max_steps=4", f"trainer.precision={precision}", "hydra.run.dir=run", *settings.split())
    evaluate.main(["run", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["val", "train"]
    result = read_result("run")
    loss, bits = result["best_val_loss"], result["final_bits_per_char"]
    assert found["val"] == {"loss": loss, "bits_per_char": bits, "bits_per_byte": bits, "unit": "character"}
    evaluate.main(["run"])
    out, err = capsys.readouterr()
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert lines[0] == ["nats per character", "perplexity", "bits per character"]  # ASCII has as many bytes
    assert lines[1] == ["val", f"{loss:.4f}", f"{math.exp(loss):.4f}", f"{bits:.4f}"]
    assert lines[2][0] == "train"
    assert "ETA" not in err  # there is no terminal
    evaluate.main(["run/checkpoints/last.safetensors", "--json"])
    assert json.loads(capsys.readouterr().out) == found
    # averaged weights are validated and saved, next to those that training continues with
    if trained := read_last("run").get("current_model_state"):
        averaged = load("run")[0].state_dict()
        assert any((averaged[name.removeprefix("model.")] != now).any() for name, now in trained.items())


@pytest.mark.parametrize(("tokenizer", "unit"), [("byte", "byte"), ("bpe", "token")])
def test_evaluate_says_what_a_loss_is_per(succeed, tokenizer, unit, capsys):
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers", reason="extra hf is not installed")
    settings = [f"data.tokenizer={tokenizer}", "model.context_length=8", "data.bpe_vocab_size=257"]
    succeed("trainer.max_steps=1", "hydra.run.dir=run", *settings)
    evaluate.main(["run"])
    assert f" nats per {unit}  " in capsys.readouterr().out


def test_evaluating_another_text_needs_the_data_option(trained, text, refusal, capsys):
    content = text.read_text()
    for addition in ("XYZ\n", "ROMEO: O\n"):  # which the tokenizer does not know, and knows
        text.write_text(content + addition)
        assert "no longer the text" in refusal(evaluate.main, str(trained))
    evaluate.main([str(trained), "--data", str(text)])
    assert "\nval  " in capsys.readouterr().out


REFUSED = {
    "run --data ''": "--data = (empty): not a text",  # an unset variable of the shell
    "run --data missing.txt": "data.path = missing.txt: no such file",
    "run --context-length 4000": "--context-length = 4000: the model sees at most 16 tokens",
    "run --data other.txt": "'π' not among the",
    "missing.safetensors": "no such file",
    ".": "no such file",
    "run --data short.txt": "; --text-file short.txt scores it as a whole",
    "run --text ''": "text = '': nothing to score",
    "run --text π --json": "'π' not among the",
    "run --text-file missing.txt": "--text-file = missing.txt: no such file",
    "run --text O --data other.txt": "--data: not allowed with argument --text",
    "run --color": "--color and --drop-unknown need --text",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_evaluated_is_one_line(trained, arguments, refusal):
    Path("other.txt").write_text("ROMEO π " * 1000, encoding="utf-8")
    Path("short.txt").write_text("ROMEO")
    assert REFUSED[arguments] in refusal(evaluate.main, *shlex.split(arguments))


def test_text_is_scored_as_a_whole_from_what_stands_before_each_token(trained, capsys):
    model, tokenizer, _ = load(trained)
    text = "ROMEO: But soft, what light?\nO me."
    for length in (1, 16, len(text)):  # shorter than a window of 16 tokens, one, and two and more
        ids = tokenizer.encode("\n" + text[:length])
        surprises = [
            -model(ids[None, max(0, 8 * (end // 8 - 1)) if end >= 16 else 0 : end + 1])[0, -1]
            .log_softmax(dim=-1)[ids[end + 1]]
            .item()
            for end in range(length)
        ]
        evaluate.main([str(trained), "--text", text[:length].replace("\n", r"\n"), "--json"])
        found = json.loads(capsys.readouterr().out)["text"]
        assert found["loss"] == pytest.approx(sum(surprises) / length, rel=1e-5)
        assert found["bits_per_char"] == pytest.approx(found["loss"] / math.log(2))
    Path("text.txt").write_text(text + "π")
    evaluate.main([str(trained), "--text-file", "text.txt", "--color", "--drop-unknown"])
    out = capsys.readouterr().out
    assert "\x1b[48;5;" in out
    shown, table = re.sub(r"\x1b\[[0-9;]+m", "", out).split("\n\n")
    assert shown == text
    shown = ["text", f"{found['loss']:.4f}", f"{math.exp(found['loss']):.4f}"]
    assert table.splitlines()[1].split()[:3] == shown


def test_probabilities_are_averaged():
    members = [make_model("modern").eval(), make_model("gpt2").eval()]
    ids = torch.randint(11, (2, 5))
    expected = (members[0](ids).softmax(-1) + members[1](ids).softmax(-1)) / 2
    torch.testing.assert_close(Ensemble(members)(ids).softmax(-1), expected)


def test_programs_average_several_runs(succeed, capsys):
    for seed in (1, 2):
        succeed("trainer.max_steps=3", f"seed={seed}", f"hydra.run.dir=run{seed}")

    def loss(*arguments: str) -> float:
        capsys.readouterr()
        evaluate.main([*arguments, "--json"])
        return json.loads(capsys.readouterr().out)["val"]["loss"]

    single, together = [loss("run1"), loss("run2")], loss("run1", "run2")
    assert together < sum(single) / 2  # the mean of logarithms is below the logarithm of the mean
    assert loss("run1", "run2", "--context-length", "4") > together  # less to go by
    sample.main(["run1", "run2", "--prompt", "O", "--tokens", "30", "--seed", "1", "--exact"])
    assert len(capsys.readouterr().out) == len("O" + 30 * "." + "\n")


def test_runs_on_other_texts_are_not_averaged(succeed, trained, text):
    text.write_text(text.read_text() + "O")
    succeed("trainer.max_steps=1", "hydra.run.dir=other")
    with pytest.raises(UserError, match=r"other.* has seen another text than run"):
        evaluate.main(["run", "other"])
