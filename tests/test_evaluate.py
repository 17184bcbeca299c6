"""scripts/evaluate.py: it finds the losses of a run's result to the last digit, or prints one line that says why it cannot."""

import json
import math
import re
from pathlib import Path

import pytest
import torch

import evaluate
from conftest import TINY
from gpt.settings import user_errors

ONE_LINE = re.compile(r"\Aerror: [^\n]+ = [^\n]*: [^\n]+; [^\n]+\n\Z")


@pytest.fixture
def finish(call, text, precision):
    """Train a run of four steps with further settings and return its folder."""

    def train(*settings: str) -> Path:
        always = [*TINY, f"data.path={text}", "trainer.max_steps=4", f"trainer.precision={precision}", "hydra.run.dir=run"]
        code, _, err = call(*always, *settings)
        assert code == 0, err
        return Path("run")

    return train


@pytest.mark.parametrize("settings", [[], ["callbacks=ema", "callbacks.ema.decay=0.5"]], ids=["plain", "averaged"])
def test_evaluate_prints_the_result_to_the_last_digit(finish, settings, capsys):
    run = finish(*settings)
    evaluate.main([str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["val", "train"]
    result = json.loads((run / "result.json").read_text())
    loss, bits = result["best_val_loss"], result["final_bits_per_char"]
    assert found["val"] == {"loss": loss, "bits_per_char": bits, "bits_per_byte": bits, "unit": "character"}
    evaluate.main([str(run)])
    out, err = capsys.readouterr()
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert lines[0] == ["nats per character", "perplexity", "bits per character"]  # a text of ASCII has as many bytes
    assert lines[1] == ["val", f"{loss:.4f}", f"{math.exp(loss):.4f}", f"{bits:.4f}"]
    assert lines[2][0] == "train"
    assert "ETA" not in err  # there is no terminal


@pytest.mark.parametrize(("tokenizer", "unit"), [("byte", "byte"), ("bpe", "token")])
def test_evaluate_says_what_a_loss_is_per(finish, tokenizer, unit, capsys):
    if tokenizer == "bpe":
        pytest.importorskip("tokenizers", reason="extra hf is not installed")
    run = finish(f"data.tokenizer={tokenizer}", "model.context_length=8", "data.bpe_vocab_size=257")
    capsys.readouterr()
    evaluate.main([str(run)])
    assert f" nats per {unit}  " in capsys.readouterr().out


def refusal(arguments: list[str], capsys) -> str:
    """What evaluate.py prints on stderr when it refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, user_errors():
        evaluate.main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert not out
    assert ONE_LINE.match(err), err
    return err


def test_evaluating_another_text_needs_the_data_option(trained, text, capsys):
    text.write_text(text.read_text() + "ROMEO: O\n")
    assert "no longer the text" in refusal([str(trained)], capsys)
    evaluate.main([str(trained), "--data", str(text)])
    assert "\nval  " in capsys.readouterr().out


@pytest.mark.parametrize("path", ["", " "])
def test_empty_text_option_is_refused(trained, path, capsys):
    """An unset variable of the shell must not mean the run's own text."""
    assert "--data = (empty): not a text" in refusal([str(trained), "--data", path], capsys)


def edited(trained: Path, name: str, change) -> str:
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    change(content)
    torch.save(content, name)
    return name


def test_checkpoint_that_cannot_be_evaluated_is_one_line(trained, capsys):
    whole = trained / "checkpoints" / "best.ckpt"
    Path("empty.ckpt").touch()
    Path("cut.ckpt").write_bytes(whole.read_bytes()[:5000])
    torch.save({"model": {"wte": torch.zeros(3)}}, "foreign.ckpt")
    messages = {
        "missing.ckpt": "missing.ckpt: no such file",
        ".": "no such file",
        "empty.ckpt": "truncated or not a checkpoint (0 bytes)",
        "cut.ckpt": "truncated or not a checkpoint (5,000 bytes)",
        "foreign.ckpt": "not one of this project's",
        edited(trained, "other.ckpt", lambda c: c["gpt"]["model"].update(n_layer=3)): "its sizes ask for",
        edited(trained, "newer.ckpt", lambda c: c["gpt"].update(format=99)): "its format is 99, this version reads",
        edited(trained, "nan.ckpt", lambda c: c["state_dict"]["model.head.weight"].fill_(torch.nan)): "non-finite weights in 1",
        edited(trained, "no data.ckpt", lambda c: c["gpt"]["config"].pop("data")): "its metadata has no data (None)",
        edited(trained, "text.ckpt", lambda c: c["gpt"]["config"].update(data="x")): "its metadata has no data (x)",
        edited(trained, "split.ckpt", lambda c: c["gpt"]["config"]["data"].update(val_fraction=7)): "data.val_fraction = 7",
        edited(trained, "path.ckpt", lambda c: c["gpt"]["config"]["data"].update(path=["a"])): "data.path = ['a']",
        edited(trained, "file.ckpt", lambda c: c["gpt"]["config"]["data"].update(path="/etc/passwd")): "/etc/passwd",
        "https://example.org/best.ckpt": "addresses are not read",
    }
    for place, message in messages.items():
        assert message in refusal([place], capsys)


def test_folder_that_a_checkpoint_names_is_not_written_to(trained, tmp_path, monkeypatch):
    """The ids of a large text are kept in a folder, which is never the one of a stranger's configuration."""
    monkeypatch.setattr("gpt.data.IN_MEMORY", 100, raising=False)
    name = edited(trained, "a.ckpt", lambda c: c["gpt"]["config"]["data"].update(folder=str(tmp_path / "elsewhere")))
    evaluate.evaluate(name)
    assert not (tmp_path / "elsewhere").exists()


def test_checkpoint_that_does_not_say_where_it_was_trained_is_evaluated(trained):
    name = edited(trained, "a.ckpt", lambda c: c["gpt"]["config"].pop("trainer"))
    assert evaluate.evaluate(name)["val"]["loss"] > 0
