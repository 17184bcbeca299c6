"""scripts/sample.py: prompts, seeds and streams, and one clear line for every mistake."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace

import pytest
import torch

import sample
from conftest import ROOT, start
from gpt.errors import UserError
from sample import SEPARATOR

EXACT = ("--seed", "0", "--exact")


@pytest.fixture
def write(trained, capsys, monkeypatch):
    """Call scripts/sample.py on a trained run, for a text of exact length. It returns stdout and stderr."""

    def run(*arguments: str, stdin: str = "", exact: bool = True) -> tuple[str, str]:
        buffer = io.BytesIO(stdin.encode())
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=buffer))
        capsys.readouterr()
        always = ["--exact"] * exact + ([] if "--seed" in arguments else ["--seed", "0"])
        sample.main([str(trained), *always, *arguments])
        return capsys.readouterr()

    return run


def test_text_continues_the_prompt_of_which_the_model_sees_the_end(write):
    """Commas mean something to Hydra, but not here."""
    for prompt, note in (("O, me: light", ""), ("O me " * 9, "45 tokens; the model sees the last 16")):
        out, err = write("--prompt", prompt, "--tokens", "3e1")
        assert out.startswith(prompt)
        assert len(out) == len(prompt) + 30 + 1
        assert note in err


def test_prompt_comes_from_an_option_a_file_or_standard_input(write, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("JULIET: O", encoding="utf-8")
    from_file, _ = write("--prompt-file", str(file), "--tokens", "9")
    from_stdin, _ = write("--tokens", "9", stdin="JULIET: O")
    from_dash, _ = write("--prompt-file", "-", "--tokens", "9", stdin="JULIET: O")
    assert from_file == from_stdin == from_dash == write("--prompt", "JULIET: O", "--tokens", "9")[0]
    assert write("--prompt", r"JULIET:\nO", "--tokens", "0")[0] == "JULIET:\nO\n"


def test_empty_prompt_starts_after_a_line_break_that_is_not_shown(write):
    after_line_break, _ = write("--prompt", "\n", "--tokens", "9")
    assert write("--prompt", "", "--tokens", "9", stdin="JULIET")[0] == after_line_break.removeprefix("\n")
    assert write("--prompt-file", "-", "--tokens", "9")[0] == after_line_break.removeprefix("\n")
    assert write("--prompt", "", "--tokens", "0")[0] == "\n"
    assert write("--tokens", "9")[0] == after_line_break  # of no prompt, it is shown


def test_seed_decides_the_text_and_is_told_if_it_was_drawn(trained, write, capsys):
    texts = [write("--prompt", "O", "--tokens", "20", "--seed", seed)[0] for seed in "445"]
    assert texts[0] == texts[1] != texts[2]
    sample.main([str(trained), "--exact", "--prompt", "O", "--tokens", "40"])
    out, err = capsys.readouterr()
    seed = re.fullmatch(r"seed (\d+)\n", err)[1]
    assert write("--prompt", "O", "--tokens", "40", "--seed", seed) == (out, "")
    sample.main([str(trained), "--exact", "--prompt", "O", "--tokens", "40"])
    assert capsys.readouterr().out != out


def test_text_is_at_most_a_fifth_longer_and_otherwise_the_same(write):
    """The text ends at the first line break from the token that was asked for on, or after a fifth more."""
    for several in (["--temperature", "0"], ["--temperature", "1", "--num-samples", "4"]):
        exact = write("--prompt", "O", "--tokens", "60", *several)[0].split(SEPARATOR)
        texts = write("--prompt", "O", "--tokens", "50", *several, exact=False)[0].split(SEPARATOR)
        for whole, text in zip(exact, texts, strict=True):
            line_end = whole.find("\n", len("O") + 49)
            assert text == whole[: min(line_end, len("O") + 60)] + "\n"


def test_texts_do_not_depend_on_how_many_there_are(write, monkeypatch):
    monkeypatch.setattr(sample, "TEXTS_AT_ONCE", 4)  # so that seven texts take more than one batch

    def texts(count: int) -> list[str]:
        out, _ = write("--prompt", "O", "--tokens", "40", "--seed", "4", "--num-samples", str(count))
        return out.removesuffix("\n").split("\n" + SEPARATOR)

    seven = texts(7)
    assert [len(text) for text in seven] == [len("O") + 40] * 7
    assert len(set(seven)) == 7
    for count in (1, 2, 3, 6):
        assert texts(count) == seven[:count]


MISTAKES = {  # the arguments, and what the line must say
    ("--prompt", "ROMEO: 0 zebra"): "'0', 'b', 'r', 'z' not among the 29 characters",
    ("--prompt", "O = $'O"): "'$', \"'\", '='",
    ("--temperature", "-1"): "temperature = -1",
    ("--top-k", "2.5"): "argument --top-k: '2.5' is not a whole number from 1",
    ("--tokens", "1e18"): "'1e18' is not a whole number from 0 to 2,147,483,647",
    ("--tokens", "9" * 5000): "9...' is not a whole number",
    ("--stop", ""): "stop = '': is in every text; give another string",
    ("--stop", "O", "--stop", "Ω"): "stop = 'Ω': the model never writes 'Ω'; give another string",
    ("--tokens", "5", "--tokens", "7"): "--tokens is given twice, and only one of the two can count",
    ("--prompt", "O", "--seed", "1", "--out", "/dev/full/x"): "file = /dev/full/x: not written",
    ("--json", "--color"): "--color shows one text",
    ("--seed",): "argument --seed: expected one argument; --help lists all options",
    ("--colour", "red"): "unrecognized arguments: --colour red; --help lists all options",
    ("--prompt", "O", "--prompt-file", "-"): "argument --prompt-file: not allowed with argument --prompt",
    ("--prompt-file", "missing.txt"): "prompt = missing.txt: No such file",
    ("--prompt-file", "/dev/zero"): "prompt = /dev/zero: more than 16,777,216 bytes",
    ("--prompt-file", "latin.txt"): "prompt = latin.txt: not UTF-8 at byte 3",
    ("--color", "--num-samples", "2"): "--color shows one text",
    ("--interactive", "--prompt-file", "-"): "--interactive reads lines",
}


def test_each_mistake_is_one_clear_line(trained, refusal):
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    for arguments, message in MISTAKES.items():
        assert message in refusal(sample.main, str(trained), *arguments)


@pytest.mark.parametrize("seconds", [0.5, 1.5, None])
def test_ctrl_c_ends_at_once_without_a_traceback(trained_once, seconds):
    """During imports, and (None) in the middle of the text."""
    with start("sample.py", str(trained_once), *EXACT, "--prompt", "O", "--tokens", "2e9") as process:
        if seconds is None:
            assert process.stdout.read(20).startswith("O")
        else:
            time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "interrupted\n")


NEEDLESS = {  # what importing would take several times as long as the rest
    "sample --help": ["torch", "numpy", "pydantic"],
    "sample --list": ["torch", "pandas"],
    "sample run --prompt O --tokens 3": ["lightning", "matplotlib", "pandas", "transformers"],
    "pack --help": ["torch"],
}


@pytest.mark.parametrize("words", NEEDLESS)
def test_only_what_is_needed_is_imported(trained, words):
    """Where `trained` is, --list finds it under outputs/."""
    Path("outputs").symlink_to(".")
    name, *arguments = words.split()
    program = f"import sys, {name}\nsys.argv[1:] = {arguments}\n"
    program += f"try: {name}.main()\nexcept SystemExit: pass\n"
    program += f"print([name for name in {NEEDLESS[words]} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.endswith("\n[]\n"), done.stderr


@pytest.mark.parametrize("stops", [["e"], ["th"], [r"\n"], ["e", "th", "I"]])
def test_stop_ends_each_text_before_the_first_of_the_strings(write, stops):
    """The first text grows before the reader's eyes, the others are sampled together."""
    given = [word for stop in stops for word in ("--stop", stop)]
    several = ("--prompt", "OeO", "--tokens", "200", "--temperature", "2", "--num-samples", "3")
    whole, stopped = (write(*several, *more)[0].split(SEPARATOR) for more in ((), given))
    pattern = "|".join(stop.replace(r"\n", "\n") for stop in stops)
    expected = [re.split(pattern, text[3:])[0].rstrip("\n") for text in whole]
    assert [text[3:].rstrip("\n") for text in stopped] == expected


def test_texts_are_written_as_json_and_into_a_file(write):
    several = ("--prompt", "OzO", "--drop-unknown", "--tokens", "20", "--num-samples", "3")
    plain, _ = write(*several)
    as_json = [json.loads(line) for line in write(*several, "--json")[0].splitlines()]
    texts = plain.removesuffix("\n").split("\n" + SEPARATOR)
    assert [one["prompt"] + one["text"] for one in as_json] == texts
    assert [(one["prompt"], one["seed"]) for one in as_json] == [("OO", 0)] * 3
    assert write(*several, "--out", "texts.txt")[0] == ""
    assert Path("texts.txt").read_text() == plain


def test_color_tints_what_surprised_the_model_and_changes_no_character(write):
    options = ("--prompt", "O", "--tokens", "60", "--temperature", "3")
    plain, tinted = write(*options)[0], write(*options, "--color")[0]
    assert re.sub(r"\x1b\[[0-9;]+m", "", tinted) == plain
    assert "\x1b[48;5;" in tinted
    assert "\x1b[48;5;" not in plain


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
def test_gpu_that_is_not_there_is_refused(write):
    with pytest.raises(UserError, match="device = gpu: PyTorch finds none"):
        write("--device", "gpu")


def test_conversation_continues_after_each_line(trained_once, capsys):
    """The first answer is the text for the same prompt. What is unknown or no UTF-8 is refused, no more."""
    options = (*EXACT, "--tokens", "20")
    sample.main([str(trained_once), *options, "--prompt", "ROMEO:\n"])
    alone = capsys.readouterr().out.removeprefix("ROMEO:\n")
    talk = start("sample.py", str(trained_once), *options, "--interactive", stdin=PIPE, text=False)
    out, err = talk.communicate("ROMEO:\n\U0001f642".encode() + b"\xff\nO me.\n", timeout=100)
    first, refused, second, end = out.decode().split("> ")[1:]
    assert (first, refused, end) == (alone, "", "\n")
    assert len(second) == 20 + 1
    assert second != first
    assert b"among the" in err
    assert talk.returncode == 0


def test_conversation_survives_an_interrupt(trained_once):
    endless = (*EXACT, "--interactive", "--tokens", "10000000")
    with start("sample.py", str(trained_once), *endless, stdin=PIPE) as process:
        process.stdin.write("ROMEO:\n")
        process.stdin.flush()
        assert len(process.stdout.read(100)) == 100
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)  # which ends the input
        assert out.endswith("\n> \n"), err
        assert process.returncode == 0
