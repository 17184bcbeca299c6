"""scripts/sample.py: prompts, seeds and streams, and one clear line for every mistake."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import gpt.cli.texts
import sample
from conftest import ROOT, TINY
from gpt.settings import user_errors

ONE_LINE = re.compile(r"\Aerror: [^\n]+ = [^\n]*: [^\n]+; [^\n]+\n\Z")
COMMAND = f"{sys.executable} {ROOT / 'scripts' / 'sample.py'} --seed 0 --exact"


@pytest.fixture
def write(trained, capsys, monkeypatch):
    """Call scripts/sample.py on a trained run, for a text of an exact length. It returns stdout and stderr."""

    def run(*arguments: str, stdin: str = "", exact: bool = True) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(stdin.encode())))
        capsys.readouterr()
        always = ["--exact"] if exact else []
        sample.main([str(trained), *always, *([] if "--seed" in arguments else ["--seed", "0"]), *arguments])
        return capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a trained run, for tests that start processes of their own."""
    folder = tmp_path_factory.mktemp("run")
    text = folder / "text.txt"
    text.write_text("ROMEO: But soft, what light? π\nJULIET: O me.\n" * 200, encoding="utf-8")
    train = [sys.executable, str(ROOT / "scripts" / "train.py"), *TINY, "trainer.max_steps=1", "callbacks.samples=null"]
    subprocess.run([*train, f"data.path={text}", "hydra.run.dir=run"], cwd=folder, check=True, capture_output=True)
    return folder / "run"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=100, env=os.environ | environment, encoding="utf-8"
    )


def test_text_continues_the_prompt(write):
    out, _ = write("--prompt", "ROMEO:", "--tokens", "30")
    assert out.startswith("ROMEO:")
    assert len(out) == len("ROMEO:") + 30 + 1


def test_prompt_comes_from_an_option_a_file_or_standard_input(write, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_text("JULIET: O", encoding="utf-8")
    from_file, _ = write("--prompt-file", str(file), "--tokens", "9")
    from_stdin, _ = write("--tokens", "9", stdin="JULIET: O")
    from_dash, _ = write("--prompt-file", "-", "--tokens", "9", stdin="JULIET: O")
    assert from_file == from_stdin == from_dash == write("--prompt", "JULIET: O", "--tokens", "9")[0]


def test_empty_prompt_starts_after_a_line_break_that_is_not_shown(write):
    after_line_break, _ = write("--prompt", "\n", "--tokens", "9")
    assert write("--prompt", "", "--tokens", "9", stdin="JULIET")[0] == after_line_break.removeprefix("\n")
    assert write("--prompt-file", "-", "--tokens", "9")[0] == after_line_break.removeprefix("\n")
    assert write("--prompt", "", "--tokens", "0")[0] == "\n"


def test_without_a_prompt_the_text_starts_with_a_line_break(write):
    assert write("--tokens", "9") == write("--prompt", "\n", "--tokens", "9")
    assert write("--tokens", "0")[0] == "\n\n"


def test_same_seed_writes_the_same_text(write):
    text, _ = write("--prompt", "O", "--tokens", "20", "--seed", "4")
    assert write("--prompt", "O", "--tokens", "20", "--seed", "4")[0] == text
    assert write("--prompt", "O", "--tokens", "20", "--seed", "5")[0] != text


def test_without_a_seed_each_text_is_another_and_its_seed_is_told(trained, write, capsys):
    sample.main([str(trained), "--exact", "--prompt", "O", "--tokens", "40"])
    out, err = capsys.readouterr()
    seed = re.fullmatch(r"seed (\d+)\n", err)[1]
    assert write("--prompt", "O", "--tokens", "40", "--seed", seed) == (out, "")
    sample.main([str(trained), "--exact", "--prompt", "O", "--tokens", "40"])
    assert capsys.readouterr().out != out


PIECES = [b"a", b"b\n", b"c", b"\n", b"d", b"e\nf", b"g"]  # as of byte pairs, which may go on after a line break


@pytest.mark.parametrize(("count", "text"), [(0, "ab"), (1, "ab"), (2, "ab"), (3, "ab\nc"), (4, "ab\nc"), (5, "ab\nc\nde")])
def test_text_ends_where_a_line_ends(count, text):
    assert b"".join(gpt.cli.texts.up_to_line_end(PIECES, count)) == text.encode()
    assert list(gpt.cli.texts.up_to_line_end(PIECES, 7)) == PIECES


def test_text_is_at_most_a_fifth_longer_and_otherwise_the_same(write):
    """The text ends at the first line break from the token that was asked for on, or after a fifth more."""
    exact = write("--prompt", "O", "--tokens", "60", "--temperature", "0")[0]
    assert len(exact) == len("O") + 60 + 1
    longer = write("--prompt", "O", "--tokens", "50", "--temperature", "0", exact=False)[0]
    assert longer == exact[: min(exact.find("\n", len("O") + 49), len("O") + 60)] + "\n"
    many = write("--prompt", "O", "--tokens", "100", "--temperature", "1", "--num-samples", "4", "--seed", "1")[0]
    lines = write("--prompt", "O", "--tokens", "50", "--temperature", "1", "--num-samples", "4", "--seed", "1", exact=False)[0]
    for whole, text in zip(many.split(gpt.cli.texts.SEPARATOR), lines.split(gpt.cli.texts.SEPARATOR), strict=True):
        line_end = whole.find("\n", len("O") + 49)
        assert text == whole[: min(line_end, len("O") + 60)] + "\n"


def test_texts_do_not_depend_on_how_many_there_are(write, monkeypatch):
    monkeypatch.setattr(gpt.cli.texts, "TEXTS_AT_ONCE", 4)  # so that seven texts take more than one batch

    def texts(count: int) -> list[str]:
        out, _ = write("--prompt", "O", "--tokens", "40", "--seed", "4", "--num-samples", str(count))
        return out.removesuffix("\n").split("\n" + gpt.cli.texts.SEPARATOR)

    seven = texts(7)
    assert [len(text) for text in seven] == [len("O") + 40] * 7
    assert len(set(seven)) == 7
    for count in (1, 2, 3, 6):
        assert texts(count) == seven[:count]


def test_no_new_tokens_gives_the_prompt_alone(write):
    assert write("--prompt", "O me", "--tokens", "0")[0] == "O me\n"
    assert write("--prompt", "O me", "--tokens", "0", "--num-samples", "2")[0] == f"O me\n{gpt.cli.texts.SEPARATOR}O me\n"


@pytest.mark.parametrize("greedy", [("--temperature", "0"), ("--temperature", "1e-46"), ("--top-p", "1e-50"), ("--top-k", "1")])
def test_greedy_text_does_not_depend_on_the_seed(write, greedy):
    texts = {write("--prompt", "O", "--tokens", "20", *greedy, "--seed", seed)[0] for seed in "12"}
    assert texts == {write("--prompt", "O", "--tokens", "20", "--temperature", "0")[0]}


def test_numbers_may_be_written_with_an_exponent(write):
    assert write("--tokens", "2e1", "--top-k", "1e1") == write("--tokens", "20", "--top-k", "10")


def test_of_a_long_prompt_the_model_sees_the_end(write):
    out, err = write("--prompt", "O me " * 9, "--tokens", "1")
    assert "45 tokens; the model sees the last 16" in err
    assert out.startswith("O me " * 9)


def test_prompt_is_text_and_nothing_else(write):
    """Commas, equals signs, quotes and braces mean something to Hydra, but not here."""
    text = "O, me: light, ROMEO"
    assert write("--prompt", text, "--tokens", "1")[0].startswith(text)


def test_nothing_but_the_checkpoint_is_needed(trained, capsys, tmp_path, monkeypatch):
    moved = tmp_path / "elsewhere.ckpt"
    (trained / "checkpoints" / "best.ckpt").rename(moved)
    monkeypatch.chdir(tmp_path)
    sample.main([str(moved), "--prompt", "ROMEO:", "--tokens", "5"])
    assert capsys.readouterr().out.splitlines()[-1]


MISTAKES = {  # the arguments, and what the line must say
    ("--prompt", "ROMEO: 0 zebra"): "'0', 'b', 'r', 'z' not among the 29 characters",
    ("--prompt", "O = $'O"): "'$', \"'\", '='",
    ("--prompt", "O", "--temperature", "-1"): "temperature = -1",
    ("--prompt", "O", "--temperature", "nan"): "temperature = nan: not a finite number",
    ("--prompt", "O", "--temperature", "inf"): "temperature = inf: not a finite number",
    ("--prompt", "O", "--top-k", "0"): "argument --top-k: '0' is not a whole number from 1",
    ("--prompt", "O", "--top-k", "-5"): "argument --top-k: '-5' is not a whole number from 1",
    ("--prompt", "O", "--top-k", "2.5"): "argument --top-k: '2.5' is not a whole number from 1",
    ("--prompt", "O", "--top-p", "0"): "top_p = 0",
    ("--prompt", "O", "--top-p", "1.5"): "top_p = 1.5",
    ("--prompt", "O", "--tokens", "-1"): "argument --tokens: '-1' is not a whole number from 0",
    ("--prompt", "O", "--tokens", "1e18"): "'1e18' is not a whole number from 0 to 2,147,483,647",
    ("--prompt", "O", "--tokens", "9" * 5000): "9...' is not a whole number",
    ("--prompt", "O", "--tokens", "many"): "'many' is not a whole number",
    ("--prompt", "O", "--tokens", ""): "'' is not a whole number",
    ("--prompt", "O", "--num-samples", "0"): "'0' is not a whole number from 1",
    ("--prompt", "O", "--num-samples", "1e30"): "'1e30' is not a whole number",
    ("--prompt", "O", "--temperature", "hot"): "argument --temperature: invalid float value: 'hot'",
    ("--prompt", "O", "--seed", "-1"): "argument --seed: '-1' is not a whole number from 0",
    ("--prompt", "O", "--seed"): "argument --seed: expected one argument; --help lists all options",
    ("--prompt", "O", "--colour", "red"): "unrecognized arguments: --colour red; --help lists all options",
    ("--prompt", "O", "--prompt-file", "-"): "argument --prompt-file: not allowed with argument --prompt",
    ("--prompt-file", "missing.txt"): "prompt = missing.txt: No such file",
    ("--prompt-file", "."): "prompt = .: Is a directory",
    ("--prompt-file", "/dev/zero"): "prompt = /dev/zero: more than 16,777,216 bytes",
    ("--prompt-file", "latin.txt"): "prompt = latin.txt: not UTF-8 at byte 3",
}


def test_each_mistake_is_one_clear_line(trained, capsys):
    Path("latin.txt").write_bytes("café".encode("latin-1"))
    for arguments, message in MISTAKES.items():
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop, user_errors():
            sample.main([str(trained), *arguments])
        out, err = capsys.readouterr()
        assert stop.value.code == 2
        assert not out
        assert ONE_LINE.match(err), err
        assert message in err


@pytest.mark.parametrize(
    ("redirection", "code", "out", "err"),
    [
        ("<&-", 0, r"\n.{9}\n", ""),
        (">&-", 0, "", ""),
        ("<&- >&-", 0, "", ""),
        ("2>&-", 0, r"\n.{9}\n", ""),
        (">/dev/full", 2, "", r"error: output = .*No space left on device; .*\n"),
        ("| head -c 1; exit ${PIPESTATUS[0]}", 1, r"\n", ""),
    ],
)
def test_closed_and_full_streams_give_no_traceback(run, redirection, code, out, err):
    many = "--tokens 20000" if "head" in redirection else "--tokens 9"
    done = shell(f"{COMMAND} {run} {many} {redirection if '<&-' in redirection else '</dev/null ' + redirection}")
    assert done.returncode == code
    assert re.fullmatch(out, done.stdout, re.DOTALL)
    assert re.fullmatch(err, done.stderr, re.DOTALL), done.stderr


def test_very_many_texts_are_written_until_nobody_reads_them(run):
    done = shell(f"{COMMAND} {run} --prompt O --tokens 3 --num-samples 1e9 | head -5")
    assert done.stdout.count(gpt.cli.texts.SEPARATOR) == 2
    assert done.stderr == ""


@pytest.mark.parametrize("seconds", [0.3, 0.6, 1.0, 1.5, 2.5, None])
def test_ctrl_c_ends_at_once_without_a_traceback(run, seconds):
    """During imports, and (None) in the middle of the text."""
    command = [*COMMAND.split(), str(run), "--prompt", "O", "--tokens", "2e9"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        if seconds is None:
            assert process.stdout.read(20).startswith("O")
        else:
            time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "interrupted\n")


def test_terminal_without_unicode_gets_escapes(run):
    done = shell(f"{COMMAND} {run} --prompt π --tokens 1", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("\\u03c0")


def test_help_does_not_import_torch():
    program = "import sys, sample\ntry: sample.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "scripts", capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_writing_a_text_does_not_import_lightning():
    """It would take several times as long as the text itself."""
    arguments = ["--pretrained", "--prompt", "O", "--tokens", "3", "--exact"]
    heavy = ["lightning", "matplotlib", "transformers"]
    program = f"import sys, sample\nsample.main({arguments})\nprint([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT / "scripts", capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("stop", ["e", "th", "\n"])
def test_stop_ends_each_text_before_the_string(write, stop):
    """The first text grows before the reader's eyes, the others are sampled together."""
    several = ("--prompt", f"O{stop}O", "--tokens", "200", "--temperature", "2", "--num-samples", "3")
    whole, stopped = (write(*several, *more)[0].split(gpt.cli.texts.SEPARATOR) for more in ((), ("--stop", stop)))
    start = len(f"O{stop}O")
    assert [text[start:].rstrip("\n") for text in stopped] == [text[start:].split(stop)[0].rstrip("\n") for text in whole]


def test_empty_stop_string_is_refused(write):
    with pytest.raises(sample.UserError, match="stop = '': every text contains it; give"):
        write("--stop", "")


def test_color_tints_what_surprised_the_model_and_changes_no_character(write):
    options = ("--prompt", "O", "--tokens", "60", "--temperature", "3")
    plain, tinted = write(*options)[0], write(*options, "--color")[0]
    assert re.sub(r"\x1b\[[0-9;]+m", "", tinted) == plain
    assert "\x1b[48;5;" in tinted
    assert "\x1b[48;5;" not in plain


@pytest.mark.parametrize("option", [("--color",), ("--interactive",), ("--interactive", "--prompt-file", "-")])
def test_options_that_contradict_each_other_are_refused(write, option):
    with pytest.raises(sample.UserError, match=f"{option[0]} (shows one text|reads lines)"):
        write(*option, *(() if len(option) > 1 else ("--num-samples", "2")))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has a GPU")
def test_gpu_that_is_not_there_is_refused(write):
    with pytest.raises(sample.UserError, match="device = gpu: PyTorch finds none"):
        write("--device", "gpu")


def test_conversation_goes_on_after_each_line(run):
    """The first answer is the text for the same prompt. An unknown character is refused, and the next line is taken."""
    alone = shell(f"{COMMAND} {run} --prompt $'ROMEO:\\n' --tokens 20").stdout.removeprefix("ROMEO:\n")
    talk = shell(f"printf 'ROMEO:\\n\U0001f642\\nO me.\\n' | {COMMAND} {run} --interactive --tokens 20")
    first, refused, second, end = talk.stdout.split("> ")[1:]
    assert (first, refused, end) == (alone, "", "\n")
    assert len(second) == 20 + 1
    assert second != first
    assert "among the" in talk.stderr
    assert talk.returncode == 0


def test_conversation_survives_an_interrupt(run):
    command = [sys.executable, str(ROOT / "scripts" / "sample.py"), str(run), "--interactive", "--tokens", "10000000"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdin.write(b"ROMEO:\n")
        process.stdin.flush()
        assert len(process.stdout.read(100)) == 100
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)  # which ends the input
        assert out.endswith(b"\n> \n"), err
        assert process.returncode == 0
