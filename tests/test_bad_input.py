"""Bad input: one line on stderr, exit code 2, no traceback, nothing left behind."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import evaluate
import sample
from conftest import ROOT, TINY
from gpt.settings import user_errors

ONE_LINE = re.compile(r"\Aerror: [^\n]+ = [^\n]*: [^\n]+; [^\n]+\n\Z")

CONFIGURATION = {  # the arguments: what the line must say
    ("model.n_head=3",): "model.n_head = 3: n_embd = 16 is not divisible by it; try one of [1, 2, 4, 8, 16]",
    ("model.n_layer=0",): "model.n_layer = 0",
    ("model.n_layer=-1",): "model.n_layer = -1",
    ("model.n_embd=0",): "model.n_embd = 0",
    ("model.context_length=0",): "model.context_length = 0",
    ("data.batch_size=0",): "data.batch_size = 0",
    ("data.batch_size=-4",): "data.batch_size = -4",
    ("model.vocab_size=7",): "model.vocab_size = 7: the text has 29 characters",
    ("model.nhead=2",): "model.nhead = 2: no such setting; did you mean model.n_head?",
    ("+model.nhead=2",): "model.nhead = 2: no such setting; did you mean model.n_head?",
    ("+trainer.max_step=2",): "did you mean trainer.max_steps?",
    ("model=smal",): "model = smal: no such file in conf/model/; choose one of medium, small, tiny\n",
    ("model.n_head=abc",): "model.n_head = abc: not a whole number",
    ("trainer.max_steps=1.5",): "trainer.max_steps = 1.5: not a whole number",
    ("optimizer.lr=0",): "optimizer.lr = 0.0",
    ("optimizer.lr=-1",): "optimizer.lr = -1",
    ("optimizer.lr=nan",): "optimizer.lr = nan",
    ("optimizer.lr=inf",): "optimizer.lr = inf",
    ("optimizer.name=sgd",): "optimizer.name = sgd: unknown; choose one of adamw, muon",
    ("model.dropout=1.0",): "model.dropout = 1.0",
    ("model.dropout=-0.1",): "model.dropout = -0.1",
    ("optimizer.betas=[0.9,1.0]",): "optimizer.betas",
    ("optimizer.betas=0.9",): "optimizer.betas = 0.9: not a list of 2",
    ("optimizer.weight_decay=-1",): "optimizer.weight_decay = -1",
    ("trainer.gradient_clip_val=-1",): "trainer.gradient_clip_val = -1",
    ("trainer.accumulate_grad_batches=0",): "trainer.accumulate_grad_batches = 0",
    ("trainer.accumulate_grad_batches=-1",): "trainer.accumulate_grad_batches = -1",
    ("trainer.val_check_interval=0",): "trainer.val_check_interval = 0",
    ("trainer.log_every_n_steps=0",): "trainer.log_every_n_steps = 0",
    ("trainer.max_steps=0",): "trainer.max_steps = 0",
    ("trainer.max_steps=-1",): "trainer.max_steps = -1",
    ("scheduler.warmup_ratio=1.5",): "scheduler.warmup_ratio = 1.5",
    ("scheduler.min_lr_ratio=2",): "scheduler.min_lr_ratio = 2",
    ("scheduler.shape=square",): "scheduler.shape = square",
    ("seed=-1",): "seed = -1",
    ("seed=4294967296",): "seed = 4294967296",
    ("seed=abc",): "seed = abc",
    ("callbacks=null",): "null is no choice; leave a group out with ~",
    ("trainer.precision=16-mixed",): "trainer.precision = 16-mixed: not supported; choose one of auto, 32, 32-true, bf16-mixed",
    ("trainer.precision=99",): "trainer.precision = 99: not supported; choose one of auto, 32, 32-true, bf16-mixed",
    ("trainer.devices=abc",): "trainer.accelerator, devices = cpu, abc",
    ("+trainer.fast_dev_run=true",): "trainer.fast_dev_run = True: no such setting",
    ("+max_steps=5",): "max_steps = 5: no such setting",
    ("~seed",): "seed = None",
    ("~model.n_head",): "model.n_head = (missing)",
    ("callbacks.samples.temperatures=[-1]",): "temperature = -1",
    ("callbacks.samples._target_=os.system",): "samples._target_ = os.system: not allowed",
    ("callbacks.samples.colour=red",): "callbacks.samples.colour = red: no such setting",
    ("trainer.devices=0",): "trainer.accelerator, devices = cpu, 0",
    ("trainer.devices=4096",): "trainer.devices = 4096: more processes than",
    ("data.num_workers=-1",): "data.num_workers = -1: no such setting",
    ("trainer.max_steps=-5",): "trainer.max_steps = -5",
    ("model.n_embd=10000000",): "GiB of memory, and there are",
    ("data.batch_size=1000000000",): "GiB of memory, and there are",
    ("data.tokenizer=word",): "data.tokenizer = word: unknown; choose one of char, byte, bpe",
    ("data.bpe_vocab_size=1",): "data.bpe_vocab_size = 1: must be from 256 to 65536",
    ("data.path=/dev/zero",): "data.path = /dev/zero: not a file",
    ("data.path='*.md'",): "data.path = *.md: no such file",
    ("hydra.run.dir=same.txt/run",): "file = same.txt/run: Not a directory",
    ("--max-steps", "3"): "options = --max-steps: settings have no dashes; write them as trainer.max_steps=3",
    ("model/arch=bert",): "model/arch = bert",
    ("model.n_head=",): "model.n_head",
    ("data.val_fraction=0",): "data.val_fraction = 0",
    ("data.val_fraction=1",): "data.val_fraction = 1",
    ("data.val_fraction=nan",): "data.val_fraction = nan",
    ("data.path=missing.txt",): "data.path = missing.txt: no such file",
    ("data.path=nothing",): "data.path = nothing: a folder without files",
    ("data.path=empty.txt",): "data.path = empty.txt: 0 characters",
    ("data.path=same.txt",): "data.path = same.txt: only the character 'a'",
    ("data.path=short.txt",): "its validation split has 10 characters, fewer than the 17 of one window",
    ("data.path=latin.txt",): "data.path = latin.txt: not UTF-8 at byte 3",
}

if not torch.cuda.is_available():
    CONFIGURATION[("trainer=gpu", "trainer.accelerator=gpu")] = "trainer.accelerator, devices = gpu, 1"


@pytest.mark.parametrize("arguments", CONFIGURATION, ids=" ".join)
def test_configuration(arguments, call, text):
    Path("empty.txt").write_text("")
    Path("nothing").mkdir()
    Path("same.txt").write_text("a" * 1000)
    Path("short.txt").write_text("ab" * 50)
    Path("latin.txt").write_bytes("café au lait".encode("latin-1"))
    given = set(Path().iterdir())
    code, out, err = call(*TINY, f"data.path={text}", *arguments)
    usage, error = err.partition("error: options")[::2] if arguments[0].startswith("--") else ("", "")
    line = err.removeprefix(usage) if error else err
    assert code == 2
    assert ONE_LINE.match(line), err
    assert CONFIGURATION[arguments] in line
    assert "Traceback" not in out + err
    left = set(Path().iterdir()) - given
    assert left <= {Path("outputs")}
    assert not any(Path("outputs").iterdir() if left else ())


def test_a_folder_that_holds_another_run_is_refused(call, trained, text):
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=4", "model.n_layer=1", "hydra.run.dir=run")
    assert code == 2
    assert "model.n_layer = 1: the run in" in err
    assert ONE_LINE.match(err)


def test_what_can_be_meant_is_taken(call, text):
    """No refusal: a validation that is further off than the end, control characters, a mark at the beginning."""
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes() + b"\x00\x1b")
    settings = [*TINY, f"data.path={text}", "callbacks.samples=null", "trainer.max_steps=1e0"]
    code, out, err = call(*settings, "trainer.val_check_interval=100", "hydra.run.dir=far")
    assert code == 0
    assert "after 1 steps" in out  # validated at the end
    assert err == f"note: data.path = {text}: control characters in it, kept: '\\x00\\x1b'\n"


def test_too_little_room_on_the_disk_is_noticed_before(call, text, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=4")
    assert code == 2
    assert "1,000 bytes free, and checkpoints take" in err
    assert ONE_LINE.match(err)
    assert not list(Path().glob("outputs/*"))


def test_a_terminal_without_unicode(text, call):
    text.write_text("ROMEO: π\n" * 500)
    assert call(*TINY, f"data.path={text}", "trainer.max_steps=1", "hydra.run.dir=run")[0] == 0
    command = [sys.executable, str(ROOT / "scripts" / "sample.py"), "run", "--prompt", "π", "--tokens", "1"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("\\u03c0")
    head = f"{' '.join(command)} --tokens 400 | head -c 2; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", head], capture_output=True, text=True, timeout=100)
    assert done.stderr == ""  # whoever read us, had enough


def refused(main, arguments: list[str], capsys) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop, user_errors():
        main(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert not out
    assert ONE_LINE.match(err), err
    return err


SAMPLING = {
    ("--prompt", "ROMEO: 0 zebra"): "'0', 'b', 'r', 'z' not among the 29 characters",
    ("--prompt", "O", "--temperature", "-1"): "temperature = -1",
    ("--prompt", "O", "--temperature", "nan"): "temperature = nan",
    ("--prompt", "O", "--temperature", "inf"): "temperature = inf",
    ("--prompt", "O", "--top-k", "0"): "top_k = 0",
    ("--prompt", "O", "--top-k", "-5"): "top_k = -5",
    ("--prompt", "O", "--top-p", "0"): "top_p = 0",
    ("--prompt", "O", "--top-p", "1.5"): "top_p = 1.5",
    ("--prompt", "O", "--tokens", "-1"): "--tokens = -1",
    ("--prompt", "O", "--num-samples", "0"): "--num-samples = 0",
    ("--prompt", "O", "--seed", "-1"): "--seed = -1",
    ("--prompt-file", "missing.txt"): "--prompt-file = missing.txt: No such file",
}


def test_sampling(trained, capsys):
    for arguments, message in SAMPLING.items():
        assert message in refused(sample.main, [str(trained), *arguments], capsys)


def test_a_prompt_is_text_and_nothing_else(trained, capsys):
    """Commas, equals signs, quotes and braces mean something to Hydra, and nothing here."""
    text = "O, me: light, ROMEO"
    sample.main([str(trained), "--prompt", text, "--tokens", "1"])
    assert capsys.readouterr().out.startswith(text)
    assert "'$', '\\'', '='" in refused(sample.main, [str(trained), "--prompt", "O = $'O"], capsys).replace('"\'"', "'\\''")


@pytest.mark.parametrize("main", [sample.main, evaluate.main], ids=["sample", "evaluate"])
def test_checkpoints(main, trained, capsys):
    extra = ["--prompt", "O"] if main is sample.main else []
    empty, cut, foreign = Path("empty.ckpt"), Path("cut.ckpt"), Path("foreign.ckpt")
    whole = trained / "checkpoints" / "best.ckpt"
    empty.touch()
    cut.write_bytes(whole.read_bytes()[:5000])
    torch.save({"model": {"wte": torch.zeros(3)}}, foreign)
    other = torch.load(whole, weights_only=True)
    other["gpt"]["model"]["n_layer"] = 3
    torch.save(other, "other.ckpt")
    newer = torch.load(whole, weights_only=True)
    newer["gpt"]["format"] = 99
    torch.save(newer, "newer.ckpt")
    broken = torch.load(whole, weights_only=True)
    broken["state_dict"]["model.head.weight"].fill_(torch.nan)
    torch.save(broken, "nan.ckpt")
    for place, message in {
        "missing.ckpt": "missing.ckpt: no such file",
        ".": "no such file",
        "empty.ckpt": "truncated or not a checkpoint (0 bytes)",
        "cut.ckpt": "truncated or not a checkpoint (5,000 bytes)",
        "foreign.ckpt": "not one of this project's",
        "other.ckpt": "its sizes ask for",
        "newer.ckpt": "its format is 99, this version reads",
        "nan.ckpt": "non-finite weights in 1 tensors",
        "https://example.org/best.ckpt": "addresses are not read",
    }.items():
        assert message in refused(main, [place, *extra], capsys)


def test_evaluating_on_a_changed_text_is_refused(trained, text, capsys):
    text.write_text(text.read_text() + "ROMEO: O\n")
    assert "no longer the text" in refused(evaluate.main, [str(trained)], capsys)
    evaluate.main([str(trained), "--data", str(text)])
    assert "val   loss" in capsys.readouterr().out
