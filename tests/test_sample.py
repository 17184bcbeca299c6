import io
import sys
from types import SimpleNamespace

import pytest

import sample


@pytest.fixture
def write(trained, capsys, monkeypatch):
    """Call scripts/sample.py on a trained run: returns its stdout and stderr."""

    def run(*arguments: str, stdin: str = "") -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(stdin.encode())))
        capsys.readouterr()
        sample.main([str(trained), *arguments])
        return capsys.readouterr()

    return run


def test_writes_on_from_a_prompt(write):
    out, _ = write("--prompt", "ROMEO:", "--tokens", "30")
    assert out.startswith("ROMEO:")
    assert len(out) == len("ROMEO:") + 30 + 1


def test_prompt_from_standard_input_or_a_file(write, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("JULIET: O", encoding="utf-8")
    from_file, _ = write("--prompt-file", str(file), "--tokens", "9")
    from_stdin, _ = write("--tokens", "9", stdin="JULIET: O")
    from_dash, _ = write("--prompt-file", "-", "--tokens", "9", stdin="JULIET: O")
    assert from_file == from_stdin == from_dash == write("--prompt", "JULIET: O", "--tokens", "9")[0]


def test_seed_and_number_of_samples(write):
    one, _ = write("--prompt", "O", "--tokens", "20", "--seed", "4")
    assert write("--prompt", "O", "--tokens", "20", "--seed", "4")[0] == one
    assert write("--prompt", "O", "--tokens", "20", "--seed", "5")[0] != one
    three, _ = write("--prompt", "O", "--tokens", "20", "--seed", "4", "--num-samples", "3")
    texts = three.split("-" * 20 + "\n")
    assert [len(text) for text in texts] == [len("O") + 20 + 1] * 3
    assert len(set(texts)) == 3


def test_edges(write):
    assert write("--prompt", "O me", "--tokens", "0")[0] == "O me\n"
    assert write("--tokens", "0")[0] == "\n\n"  # no prompt: a new line to start from
    greedy = [write("--prompt", "O", "--temperature", "0", "--seed", seed)[0] for seed in "12"]
    assert greedy[0] == greedy[1]
    assert write("--prompt", "O", "--tokens", "5", "--top-k", "1000")[0]
    out, err = write("--prompt", "O me " * 9, "--tokens", "1")
    assert "45 tokens; the model sees the last 16" in err
    assert out.startswith("O me " * 9)


def test_needs_nothing_but_the_checkpoint(trained, capsys, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere.ckpt"
    (trained / "checkpoints" / "best.ckpt").rename(moved)
    monkeypatch.chdir(tmp_path)
    sample.main([str(moved), "--prompt", "ROMEO:", "--tokens", "5"])
    assert capsys.readouterr().out.splitlines()[-1]
