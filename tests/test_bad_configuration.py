"""Whatever is typed: one line that gives place, value and reason, with exit code 2, and nothing left behind.

What a value may be is decided by `RunConfig`, so most mistakes are tried there, the others by the script.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from gpt.cli.main import compose_config, is_trusted, targets
from gpt.cli.overrides import parse_overrides, quote_paths
from gpt.config import RunConfig, setting_names
from gpt.errors import ELSEWHERE, UserError
from gpt.module import GPTModule

# What is refused by itself, as it is typed, by the reason. Settings of fine-tuning need the two groups below
REFUSED = {
    "should be greater than": """
        model.n_head=0 model.dropout=-0.1 data.batch_size=-4 optimizer.lr=0 optimizer.muon_lr=-1 seed=-1
        trainer.max_steps=0 task.max_length=4 finetune.epochs=0""",
    "should be less than": "model.n_embd=65537 model.dropout=1.0 scheduler.warmup_ratio=1.5",
    "exceeded maximum size": "trainer.max_steps=1e30",
    "should be a valid integer": "model.n_head=abc model.n_head=null model.n_head=1.5 model.n_head=[]",
    "should be a valid number": "optimizer.lr=fast",
    "should be a finite number": "model.dropout=nan optimizer.lr=inf trainer.max_steps=nan",
    "is true or false, where a number": "model.n_head=true model.dropout=true seed=true",
    "should be a valid boolean": "model.bias=3 trainer.compile=maybe",
    "should be a valid string": "data.path=[true] data.path=true trainer.devices=true init=[a] name=null",
    "should be 'layernorm' or 'rmsnorm'": "model.norm=batchnorm",
    "should be 'gelu', 'relu' or 'relu2'": "model.activation=null",
    "should be 'auto' or 'ddp'": "trainer.strategy=fsdp",
    "should be 'auto', '32-true' or 'bf16-mixed'": "trainer.precision=16-mixed trainer.precision=99",
    "should be a valid tuple": "optimizer.betas=0.9",
    "set optimizer=adamw or optimizer=muon": "optimizer.name=sgd optimizer.name=null",
    "should match": "trainer.devices=0 trainer.devices=-1 trainer.max_time=soon",
    "should be a valid dictionary": """
        optimizer=null model=3 model=[1] callbacks=3 callbacks.samples=5 logger=csv""",
    "becomes part of a folder's name": "name=a/b/c name=../../x name=.x",
    "no such setting": "data.num_workers=1 run_dir=5",
    "did you mean model.n_head?": "model.nhead=2",
    "did you mean optimizer.muon_momentum?": "optimizer.momentum=0.9",
    "did you mean trainer.max_steps?": "max_steps=5",
    "it is called model.context_length here": "model.block_size=8 block_size=8",
    "it is called hydra.run.dir here": "out_dir=out",
    "it is called data.path here": "dataset=my.txt",
    "it is called trainer.max_steps here": "max_iters=5",
    "is not divisible by it into heads of even size": "model.n_head=3 model.n_head=32",
}
TYPED = [(word, why) for why, words in REFUSED.items() for word in words.split()]
CASES = [(*parse_overrides([word]).popitem(), why) for word, why in TYPED]
CASES += [("name", name, "becomes part of a folder's name") for name in ("", "x" * 300, "a\nb")]
CASES += [(key, "", "should have at least 1 character") for key in ("data.path", "data.folder", "init")]
CASES += [("data.folder", "\ud800", "unable to parse raw data as a unicode string")]
CASES += [("model.context_length", 10**600, "less than"), ("model.n_head", "", "valid integer")]


@pytest.mark.parametrize(("key", "value", "reason"), CASES)
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


OF_TWO = {  # a mistake of two settings names the one to change
    r"optimizer\.betas\S* = 1\.0: should be less": {"optimizer": {"name": "muon", "betas": [0.9, 1.0]}},
    r"optimizer\.betas": {"optimizer": {"name": "muon", "betas": [0.9]}},
    r"optimizer\.name = \(missing\): set optimizer=adamw or": {"optimizer": {"betas": [0.9, 0.99]}},
    r"finetune = \(missing\): fine-tuning needs this group; start scripts/finetune\.py": {"task": {}},
}


@pytest.mark.parametrize("line", OF_TWO)
def test_mistake_of_two_settings_names_the_one_to_change(line):
    with pytest.raises(UserError, match=f"^{line}"):
        RunConfig.from_dict(OF_TWO[line])


COMMANDS: dict[tuple[str, ...], str] = {  # the arguments, and what the line must say
    ("n_layer=2",): "n_layer = 2: no such setting; did you mean model.n_layer?",
    ("+model.nhead=2",): "model.nhead = 2: no such setting; did you mean model.n_head?",
    ("model=smal",): "model = smal: no such file in conf/model/; choose one of medium, small, tiny\n",
    ("model.vocab_size=7",): "model.vocab_size = 7: the text has 29 characters",
    ("model.n_head=${nowhere}",): "override = ",
    ("model.n_embd=65536", "model.n_layer=1000"): "GiB of memory, where there are",
    ("data.path=/dev/zero",): "data.path = /dev/zero: no such file",
    ("data.path='*.md'",): "data.path = *.md: no such file",
    ("data.path=nothing",): "data.path = nothing: a folder without files",
    ("data.path=same.txt",): "data.path = same.txt: only the character 'a'",
    ("data.path=short.txt",): "its validation split has 10 characters, fewer than the 17 of one window",
    ("data.path=latin.txt",): "data.path = latin.txt: not UTF-8 at byte 3",
    ("trainer.devices=4096",): "trainer.devices = 4096: more processes than",
    ("+trainer.fast_dev_run=true",): "trainer.fast_dev_run = True: not a setting of a run; use trainer=debug",
    ("+trainer.max_step=2",): "did you mean",
    ("+callbacks.mine._target_=pathlib.Path",): "callbacks.mine = pathlib.Path: not a Callback of Lightning",
    ("callbacks=null",): "callbacks = null: no file of conf/callbacks/; ~callbacks leaves the group out",
    ("callbacks.samples.tokens=abc",): "callbacks.samples.tokens = abc: should be a valid integer",
    ("task.path=x.csv",): "task.path = x.csv: a setting of fine-tuning; start scripts/finetune.py",
    ("hydra.run.dir=same.txt/run",): "file = ",
    ("hydra.run.dir=a/b/c", "data.path=missing.txt"): "data.path = missing.txt: no such file",
    ("--max_iters=5",): "--max_iters = 5: no such option; settings have no dashes; it is called trainer.max_",
    ("--n-head", "3"): "--n-head = : no such option; settings have no dashes; did you mean model.n_head?",
    ("-m", "seed=1,2", "model.n_head=3"): "model.n_head = 3: n_embd = 16 is not divisible by it",
    ("-m", "seed=1,2", "resume=last"): "resume = last: not for sweeps",
    ("model.n_head=1,2",): "model.n_head=1,2 = (several values): that is a sweep; add -m",
    ("seed=1", "a=b=c}"): "override = a=b=c}: ",
    ("ckpt_path=x",): "it is called resume here",
    ("trainer.limit_val_batches=2",): "Lightning's Trainer is added by +trainer.limit_val_batches",
    ("optimizer=adamw", "optimizer.muon_lr=0.1"): "optimizer.muon_lr = 0.1: no such setting",
    ("data.val_fraction=0", "callbacks=early_stopping"): "early_stopping needs a part for",
    ("callbacks=zero_shot",): "give a play",
    ("-m", "seed=1,2", "data.path=nowhere.txt"): "data.path = nowhere.txt: no such file",
    ("-m", "optimizer=adamw,adam"): "optimizer = adam: no such file in conf/optimizer/",
    ("-m", "seed=interval(1,2)"): "BasicSweeper does not support sweep type : INTERVAL_SWEEP",
    ("-m", "seed=1,2", "name=${nothing}"): "Interpolation key 'nothing' not found",
}

if not torch.cuda.is_available():
    COMMANDS[("trainer=gpu", "trainer.accelerator=gpu")] = "trainer.accelerator, devices = gpu, 1"


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments)[:80])
def test_bad_command_is_one_line_and_leaves_nothing(arguments, refuse):
    for folder in ("nothing", "outputs/sweeps"):
        Path(folder).mkdir(parents=True)
    Path("same.txt").write_text("a" * 1000)
    Path("short.txt").write_text("ab" * 50)
    Path("latin.txt").write_bytes("café au lait".encode("latin-1"))
    err = refuse(*arguments)
    assert len(err) < 700
    assert COMMANDS[arguments] in err


ADVICE = {  # a mistake, where its line says what to type, and how that is typed
    "model.n_head=3": (r"try one of \[(.*)\]", "model.n_head={}"),
    "model.n_embd=64 model.n_head=64": (r"try one of \[(.*)\]", "model.n_embd=64 model.n_head={}"),
    "model.n_head=7 model/arch=gpt2": (r"try one of \[(.*)\]", "model.n_head={} model/arch=gpt2"),
    "model.n_embd=15 model.n_head=1": (r"or (model.positions=\w+)", "model.n_embd=15 model.n_head=1 {}"),
    "optimizer.name=sgd": (r"set (\S+ or \S+)", "{}"),
    "model=smal": (r"choose one of (.*)", "model={}"),
    "callbacks=null": (r"(~callbacks) leaves", "{}"),
    "trainer.limit_val_batches=2": (r"added by (\S+)\)", "{}=2"),
    "n_layer=2": (r"did you mean (\S+)\?", "{}=2"),
    "optimizer.momentum=0.9": (r"did you mean (\S+)\?", "{}=0.9"),
    "max_iters=5": (r"called (\S+) here", "{}=5"),
    "trainer.strategy=fsdp": (r"should be (.*)", "trainer.strategy={}"),
}


@pytest.mark.parametrize("mistake", ADVICE)
def test_every_advice_works_when_it_is_typed(mistake):
    pattern, typed = ADVICE[mistake]
    with pytest.raises(UserError) as error:
        compose_config(mistake.split())
    for advised in re.split(", | or ", re.search(pattern, str(error.value))[1]):
        assert compose_config(typed.format(advised.strip("'")).split())


def test_what_other_projects_say_is_explained_by_names_that_exist():
    assert set(ELSEWHERE.values()) <= {*setting_names(), "resume", "hydra.run.dir"}


PATHS = {  # as a shell hands it over, and what it names; the file "a, b's [1].txt" exists
    "data.path=texts/v=1.txt": "texts/v=1.txt",
    "data.path=a, b's [1].txt": "a, b's [1].txt",
    "task.path=~/table.csv": "/home/me/table.csv",
    "init=last": "last",
    "init=null": None,
    "hydra.run.dir=it's/two parts": "it's/two parts",
    "hydra.run.dir=outputs/${name}": "outputs/${name}",
    "resume='outputs/a=b'": "outputs/a=b",
    "data.path=[a.txt,b.txt]": ["a.txt", "b.txt"],
}


@pytest.mark.parametrize("typed", PATHS)
def test_path_is_what_a_shell_hands_over(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    Path("a, b's [1].txt").touch()
    assert list(parse_overrides(quote_paths([typed])).values()) == [PATHS[typed]]


def test_valid_but_unusual_configuration_is_accepted(small, succeed, text):
    """A validation interval beyond the end, control characters, a byte order mark, names in any script."""
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes() + b"\x00\x1b")
    settings = [
        "callbacks.samples=null",
        "trainer.max_steps=1e0",
        "name=日本",
        "trainer.val_check_interval=100",
    ]
    code, out, err = small(*settings, "hydra.run.dir=läufe/erster Versuch")
    assert code == 0, err
    assert "after 1 steps" in out  # it was validated at the end
    assert err == f"note: data.path = {text}: it contains control characters, which are kept: '\\x00\\x1b'\n"
    assert "after 2 steps" in succeed("resume=läufe/erster Versuch", "trainer.max_steps=2")


def test_error_before_the_first_step_is_one_line_and_leaves_nothing(refuse, monkeypatch):
    def fail(self) -> None:
        raise RuntimeError("this optimizer\ncannot be made")

    monkeypatch.setattr(GPTModule, "configure_optimizers", fail)
    assert "RuntimeError: this optimizer cannot be made" in refuse("trainer.max_steps=2")


def test_error_of_a_later_step_keeps_its_traceback(small, monkeypatch):
    step = GPTModule.training_step

    def fail(self, batch, batch_idx):
        if self.global_step == 2:
            raise RuntimeError("a bug")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(GPTModule, "training_step", fail)
    code, _, err = small("trainer.max_steps=4", "hydra.run.dir=run")
    assert code == 1
    assert "RuntimeError: a bug" in err
    assert err.endswith("Please report it with the lines above and the command.\n")
    assert Path("run/config.yaml").exists()


# A folder with a run in it, which is one's own

DAMAGED = [b"", b"\xff\xfe", b"[1]", b"{}", b"a: !!python/object/apply:os.system [touch it_ran]"]


@pytest.mark.parametrize("name", ["config.yaml", "result.json"])
@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_file_of_a_run_is_one_line(refuse, trained, name, content):
    (trained / name).write_bytes(content)
    assert refuse(f"resume={trained}", "trainer.max_steps=6").startswith("error: file = ")


def test_a_run_that_has_ended_without_checkpoints_is_not_begun_again(refuse, trained):
    for path in (trained / "checkpoints").iterdir():
        path.unlink()
    err = refuse(f"resume={trained}", "trainer.max_steps=6")
    assert "no checkpoint to continue from; begin again in another folder" in err


def test_trusted_classes_are_callbacks_and_loggers_alone_at_any_depth():
    assert targets({"_target_": "a", "x": [{"y": {"_target_": "b"}}, "c"], "z": None}) == ["a", "b"]
    assert is_trusted("gpt.callbacks.EMA")
    assert is_trusted("lightning.pytorch.loggers.WandbLogger")
    for imported in ("loggers.write_text", "checkpoints.torch.load", "checkpoints.Path", "nothing"):
        assert not is_trusted(f"gpt.callbacks.{imported}")
