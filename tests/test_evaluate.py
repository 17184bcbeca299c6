"""evaluate finds the losses of a run's result to the last digit, or says in one line why it cannot."""

import json
import math
import re

import pytest

import evaluate
from gpt.checkpoint import load
from gpt.errors import UserError, user_errors
from gpt.evaluate import evaluate as evaluate_model

ONE_LINE = re.compile(r"\Aerror: [^\n]+ = [^\n]*: [^\n]+; [^\n]+\n\Z")


@pytest.mark.parametrize(
    "settings", [[], ["callbacks=ema", "callbacks.ema.decay=0.5"]], ids=["plain", "averaged"]
)
def test_evaluate_prints_the_result_to_the_last_digit(succeed, settings, precision, capsys):
    succeed("trainer.max_steps=4", f"trainer.precision={precision}", "hydra.run.dir=run", *settings)
    evaluate.main(["run", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["val", "train"]
    with open("run/result.json") as file:
        result = json.load(file)
    loss, bits = result["best_val_loss"], result["final_bits_per_char"]
    assert found["val"] == {"loss": loss, "bits_per_char": bits, "bits_per_byte": bits, "unit": "character"}
    evaluate.main(["run"])
    out, err = capsys.readouterr()
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert lines[0] == ["nats per character", "perplexity", "bits per character"]  # ASCII has as many bytes
    assert lines[1] == ["val", f"{loss:.4f}", f"{math.exp(loss):.4f}", f"{bits:.4f}"]
    assert lines[2][0] == "train"
    assert "ETA" not in err  # there is no terminal


@pytest.mark.parametrize(("tokenizer", "unit"), [("byte", "byte"), ("bpe", "token")])
def test_evaluate_says_what_a_loss_is_per(succeed, tokenizer, unit, capsys):
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers", reason="extra hf is not installed")
    settings = [f"data.tokenizer={tokenizer}", "model.context_length=8", "data.bpe_vocab_size=257"]
    succeed("trainer.max_steps=1", "hydra.run.dir=run", *settings)
    evaluate.main(["run"])
    assert f" nats per {unit}  " in capsys.readouterr().out


def refusal(arguments: list[str], capsys) -> str:
    """What evaluate.py prints on stderr when it refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, user_errors():
        evaluate.main(arguments)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert ONE_LINE.match(err), err
    return err


def test_evaluating_another_text_needs_the_data_option(trained, text, capsys):
    content = text.read_text()
    for addition in ("XYZ\n", "ROMEO: O\n"):  # which the tokenizer does not know, and knows
        text.write_text(content + addition)
        assert "no longer the text" in refusal([str(trained)], capsys)
    evaluate.main([str(trained), "--data", str(text)])
    assert "\nval  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", ""], "--data = (empty): not a text"),  # an unset variable of the shell
        (["--data", "missing.txt"], "data.path = missing.txt: no such file"),
        (["--context-length", "4000"], "--context-length = 4000: the model sees at most 16 tokens"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(trained, arguments, message, capsys):
    assert message in refusal([str(trained), *arguments], capsys)


@pytest.mark.parametrize("place", ["missing.safetensors", "."])
def test_missing_checkpoint_is_one_line(place, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "no such file" in refusal([place], capsys)


def test_text_with_unknown_characters_is_refused_from_python(trained, tmp_path):
    (tmp_path / "other.txt").write_text("ROMEO π " * 1000, encoding="utf-8")
    with pytest.raises(UserError, match="'π' not among the"):
        evaluate_model(*load(trained), path=str(tmp_path / "other.txt"))
