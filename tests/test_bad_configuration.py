"""Whatever is typed: one line that gives place, value and reason, exit code 2, no traceback, nothing left behind.

What a value may be is decided by `RunConfig`, so most mistakes are tried there. The others go through the script.
"""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import TINY
from gpt.config import RunConfig
from gpt.errors import UserError

ONE_LINE = re.compile(r"\Aerror: [^\n]+ = [^\n]*: [^\n]+\n\Z")
# The values that a setting must not have, and of each the reason. Settings of fine-tuning need the two groups below
TOO_SMALL, TOO_LARGE = "should be greater than", "should be less than"
NUMBER, WHOLE, FINITE = "should be a valid number", "should be a valid integer", "should be a finite number"
TRUTH, NO_NUMBER = "should be a valid boolean", "is true or false, where a number is needed"
NO_GROUP, UNKNOWN, NAME, TEXT = (
    "not a group of settings",
    "no such setting; ",
    "becomes part of a folder's name",
    "should be a valid string",
)
VALUES: dict[str, list[tuple[Any, str]]] = {
    "model": [(3, NO_GROUP), (None, NO_GROUP), ([1], NO_GROUP)],
    "model.n_head": [
        (3, "n_embd = 160 is not divisible by it; try one of [1, 2, 4, 5, 8, 10, 16, 20, 32, 40]"),
        (0, TOO_SMALL),
        ("abc", WHOLE),
        ("", WHOLE),
        (None, WHOLE),
        (1.5, WHOLE),
        ([], WHOLE),
        (True, NO_NUMBER),
    ],
    "model.n_layer": [(0, TOO_SMALL), (-1, TOO_SMALL), (2**10 + 1, TOO_LARGE)],
    "model.n_embd": [(0, TOO_SMALL), (2**16 + 1, TOO_LARGE)],
    "model.context_length": [
        (0, TOO_SMALL),
        (2**17 + 1, TOO_LARGE),
        (1e300, "exceeded maximum size"),
        (10**600, TOO_LARGE),
    ],
    "model.vocab_size": [(0, TOO_SMALL), (2**20 + 1, TOO_LARGE)],
    "model.dropout": [(1.0, TOO_LARGE), (-0.1, TOO_SMALL), (math.nan, FINITE), ("x", NUMBER), (True, NO_NUMBER)],
    "model.norm": [("batchnorm", "should be 'layernorm' or 'rmsnorm'")],
    "model.activation": [(None, "should be 'gelu', 'relu' or 'relu2'")],
    "model.bias": [("maybe", TRUTH), (3, TRUTH)],
    "model.conv_width": [(-1, TOO_SMALL), (2**8 + 1, TOO_LARGE)],
    "model.nhead": [(2, UNKNOWN + "did you mean model.n_head?")],
    "model.block_size": [(8, UNKNOWN + "it is called model.context_length here")],
    "data.batch_size": [(0, TOO_SMALL), (-4, TOO_SMALL), (10**10, TOO_LARGE)],
    "data.num_workers": [(1, UNKNOWN)],
    "data.tokenizer": [("word", "should be 'char', 'byte' or 'bpe'")],
    "data.bpe_vocab_size": [(1, TOO_SMALL), (2**17, TOO_LARGE)],
    "data.val_fraction": [(0, TOO_SMALL), (1, TOO_LARGE), (math.nan, FINITE)],
    "data.path": [("", "is empty"), ("a\0b", "holds a NUL character"), (["a"], TEXT)],
    "data.folder": [("", "is empty"), ("\ud800", "is not UTF-8")],
    "optimizer": [(None, NO_GROUP)],
    "optimizer.name": [("sgd", "should be one of 'adamw', 'muon'"), (None, "should be one of")],
    "optimizer.lr": [
        (0, TOO_SMALL),
        (-1, TOO_SMALL),
        (math.nan, FINITE),
        (math.inf, FINITE),
        (1e30, TOO_LARGE),
        (True, NO_NUMBER),
    ],
    "optimizer.betas": [(0.9, "should be a valid tuple")],
    "optimizer.weight_decay": [(-1, TOO_SMALL)],
    "optimizer.muon_lr": [(-1, TOO_SMALL), (1e30, TOO_LARGE)],
    "optimizer.muon_momentum": [(1.0, TOO_LARGE)],
    "optimizer.momentum": [(0.9, UNKNOWN + "did you mean optimizer.muon_momentum?")],
    "scheduler.warmup_ratio": [(1.5, TOO_LARGE)],
    "scheduler.decay_ratio": [(math.nan, FINITE)],
    "scheduler.min_lr_ratio": [(2, TOO_LARGE), (-0.1, TOO_SMALL)],
    "scheduler.shape": [("square", "should be 'linear' or 'cosine'")],
    "trainer.gradient_clip_val": [(-1, TOO_SMALL)],
    "trainer.accumulate_grad_batches": [(0, TOO_SMALL), (1e18, TOO_LARGE)],
    "trainer.val_check_interval": [(0, TOO_SMALL)],
    "trainer.log_every_n_steps": [(0, TOO_SMALL)],
    "trainer.max_steps": [
        (0, TOO_SMALL),
        (-5, TOO_SMALL),
        (1.5, WHOLE),
        (1e30, "exceeded maximum size"),
        (int("9" * 400), TOO_LARGE),
        (math.nan, FINITE),
    ],
    "trainer.precision": [("16-mixed", "should be 'auto', '32-true' or 'bf16-mixed'"), (99, "should be 'auto'")],
    "trainer.devices": [("abc", "should match"), (0, "should match"), (-1, "should match"), (True, TEXT)],
    "trainer.accelerator": [("tpu", "should be 'auto', 'cpu', 'gpu', 'cuda' or 'mps'")],
    "trainer.strategy": [("fsdp", "should be 'auto' or 'ddp'")],
    "trainer.profiler": [("pytorch", "should be 'simple' or 'advanced'"), ([1], "should be 'simple'")],
    "trainer.detect_anomaly": [("foo", TRUTH)],
    "trainer.compile": [("maybe", TRUTH)],
    "trainer.max_time": [("soon", "should match"), (5, "should match")],
    "trainer.num_nodes": [(0, TOO_SMALL)],
    "seed": [(-1, TOO_SMALL), (2**32, TOO_LARGE), ("abc", WHOLE), (True, NO_NUMBER), (None, WHOLE)],
    "name": [("a/b/c", NAME), ("../../x", NAME), ("", NAME), (".x", NAME), ("x" * 300, NAME), ("a\nb", NAME)],
    "run_dir": [(5, UNKNOWN)],
    "max_steps": [(5, UNKNOWN + "did you mean trainer.max_steps?")],
    "max_iters": [(5, UNKNOWN + "it is called trainer.max_steps here")],
    "callbacks": [(3, NO_GROUP), ([], NO_GROUP)],
    "callbacks.samples": [(5, NO_GROUP)],
    "logger": [("csv", NO_GROUP)],
    "init": [("", "is empty"), (["a"], TEXT)],
    "task.max_length": [(4, TOO_SMALL)],
    "task.test_fraction": [(1, TOO_LARGE)],
    "finetune.epochs": [(0, TOO_SMALL)],
    "finetune.layers": [(-1, TOO_SMALL)],
}


@pytest.mark.parametrize(
    ("key", "value", "reason"), [(key, value, reason) for key, found in VALUES.items() for value, reason in found]
)
def test_bad_value_is_one_line_with_place_value_and_reason(key, value, reason):
    values: dict[str, Any] = {"optimizer": {"name": "muon"}}
    if key.startswith(("task", "finetune")):
        values |= {"task": {}, "finetune": {}}
    *groups, setting = key.split(".")
    node = values
    for group in groups:
        node = node.setdefault(group, {})
    node[setting] = value
    with pytest.raises(UserError) as error:
        RunConfig.from_dict(values)
    line = str(error.value)
    assert line.startswith(f"{key} = ")
    assert reason in line
    assert line.isprintable()
    assert len(line) < 300
    if isinstance(value, (str, float)):
        assert str(value).replace("\n", " ")[:50].encode("unicode_escape").decode() in line


def test_mistake_of_two_settings_names_the_one_to_change():
    for values, line in [
        ({"model": {"n_head": 32}}, "model.positions = rotary: it turns pairs, but the head size .* is odd; choose"),
        ({"optimizer": {"betas": [0.9, 1.0]}}, r"optimizer\.betas\S* = 1\.0: should be less than 1"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer\.betas"),
        ({"task": {}}, r"finetune = \(missing\): fine-tuning needs this group; start scripts/finetune\.py"),
    ]:
        with pytest.raises(UserError, match=f"^{line}"):
            RunConfig.from_dict({"optimizer": {"name": "adamw"}} | values)


COMMANDS: dict[tuple[str, ...], str] = {  # the arguments, and what the line must say
    ("n_layer=2",): "n_layer = 2: no such setting; did you mean model.n_layer?",
    ("+model.nhead=2",): "model.nhead = 2: no such setting; did you mean model.n_head?",
    ("model=smal",): "model = smal: no such file in conf/model/; choose one of medium, small, tiny\n",
    ("model.vocab_size=7",): "model.vocab_size = 7: the text has 29 characters",
    ("model.n_head=${nowhere}",): "override = ",
    ("model.n_embd=65536", "model.n_layer=1000"): "GiB of memory, and this machine has",
    ("data.path=/dev/zero",): "data.path = /dev/zero: neither a file nor a folder",
    ("data.path='*.md'",): "data.path = *.md: no such file",
    ("data.path=nothing",): "data.path = nothing: a folder without files",
    ("data.path=same.txt",): "data.path = same.txt: only the character 'a'",
    ("data.path=short.txt",): "its validation split has 10 characters, fewer than the 17 of one window",
    ("data.path=latin.txt",): "data.path = latin.txt: not UTF-8 at byte 3",
    ("trainer.devices=4096",): "trainer.devices = 4096: more processes than",
    ("+trainer.fast_dev_run=true",): "trainer.fast_dev_run = True: not a setting of a run; use trainer=debug",
    ("+trainer.max_step=2",): "did you mean",
    ("callbacks=null",): "callbacks = null: no such file in conf/callbacks/; choose one of default",
    ("callbacks.samples.tokens=abc",): "callbacks.samples.tokens = abc: should be a valid integer",
    ("task.path=x.csv",): "task.path = x.csv: a setting of fine-tuning; start scripts/finetune.py",
    ("hydra.run.dir=same.txt/run",): "file = ",
    ("hydra.run.dir=a/b/c", "data.path=missing.txt"): "data.path = missing.txt: no such file",
    ("--max-steps", "3"): "options = --max-steps: unknown; settings have no dashes; write them as trainer.max_steps=3",
    ("-m", "seed=1,2", "model.n_head=3"): "model.n_head = 3: n_embd = 16 is not divisible by it",
    ("-m", "seed=1,2", "resume=last"): "resume = last: not for sweeps",
    ("model.n_head=1,2",): "model.n_head=1,2 = (several values): that is a sweep; add -m",
    ("a=b=c}",): "override = ",
}

if not torch.cuda.is_available():
    COMMANDS[("trainer=gpu", "trainer.accelerator=gpu")] = "trainer.accelerator, devices = gpu, 1"


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_bad_command_is_one_line_and_leaves_nothing(arguments, call, text):
    Path("nothing").mkdir()
    Path("same.txt").write_text("a" * 1000)
    Path("short.txt").write_text("ab" * 50)
    Path("latin.txt").write_bytes("café au lait".encode("latin-1"))
    given = set(Path().rglob("*"))
    options = [argument for argument in arguments if argument.startswith("-")]
    settings = [argument for argument in arguments if not argument.startswith("-")]
    code, out, err = call(*options, *TINY, f"data.path={text}", *settings)
    assert code == 2, out + err
    assert ONE_LINE.match(err), err
    assert len(err) < 700
    assert COMMANDS[arguments] in err
    assert "Traceback" not in out
    assert set(Path().rglob("*")) == given


def test_valid_but_unusual_configuration_is_accepted(call, text):
    """A validation interval beyond the end, control characters, a byte order mark and names in any script are fine."""
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes() + b"\x00\x1b")
    settings = [*TINY, f"data.path={text}", "callbacks.samples=null", "trainer.max_steps=1e0", "name=日本"]
    code, out, err = call(*settings, "trainer.val_check_interval=100", "hydra.run.dir=läufe/erster Versuch")
    assert code == 0, err
    assert "after 1 steps" in out  # it was validated at the end
    assert err == f"note: data.path = {text}: it contains control characters, which are kept: '\\x00\\x1b'\n"
    code, out, err = call("resume=läufe/erster Versuch", "trainer.max_steps=2")
    assert code == 0, err
    assert "after 2 steps" in out


def test_folder_of_another_run_is_refused(call, trained, text):
    settings = [*TINY, f"data.path={text}", "trainer.max_steps=4"]
    code, _, err = call(*settings, "model.n_layer=1", f"hydra.run.dir={trained}")
    assert code == 2
    assert "model.n_layer = 1: the run in" in err
    assert ONE_LINE.match(err)


def test_full_disk_is_noticed_before_training(call, text, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=1")
    assert code == 2
    assert "1,000 bytes free, and checkpoints take" in err
    assert ONE_LINE.match(err)
    assert not list(Path().iterdir())


def test_error_before_the_first_step_is_one_line_and_leaves_nothing(call, text, monkeypatch):
    from gpt.module import GPTModule

    def refuse(self) -> None:
        raise RuntimeError("this optimizer\ncannot be made")

    monkeypatch.setattr(GPTModule, "configure_optimizers", refuse)
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=2")
    assert code == 2
    assert "RuntimeError: this optimizer cannot be made" in err
    assert ONE_LINE.match(err)
    assert not list(Path().iterdir())


def test_error_of_a_later_step_keeps_its_traceback(call, text, monkeypatch):
    from gpt.module import GPTModule

    step = GPTModule.training_step

    def fail(self, batch, batch_idx):
        if self.global_step == 2:
            raise RuntimeError("a bug")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GPTModule, "training_step", fail)
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=4", "hydra.run.dir=run")
    assert code == 1
    assert "RuntimeError: a bug" in err
    assert err.endswith("This is a bug of this project. Please report it with the lines above and the command.\n")
    assert Path("run/config.yaml").exists()
