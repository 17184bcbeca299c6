"""Whatever is typed after scripts/train.py: one line on stderr, exit code 2, no traceback, nothing left behind."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from conftest import TINY

ONE_LINE = re.compile(r"\Aerror: [^\n]+ = [^\n]*: [^\n]+; [^\n]+\n\Z")

CONFIGURATIONS: dict[tuple[str, ...], str] = {  # the arguments, and what the line must say
    ("model.n_head=3",): "model.n_head = 3: n_embd = 16 is not divisible by it; try one of [1, 2, 4, 8, 16]",
    ("model.n_layer=0",): "model.n_layer = 0",
    ("model.n_layer=-1",): "model.n_layer = -1",
    ("model.n_embd=0",): "model.n_embd = 0",
    ("model.context_length=0",): "model.context_length = 0",
    ("model.vocab_size=7",): "model.vocab_size = 7: the text has 29 characters",
    ("model.nhead=2",): "model.nhead = 2: no such setting; did you mean model.n_head?",
    ("+model.nhead=2",): "model.nhead = 2: no such setting; did you mean model.n_head?",
    ("n_layer=2",): "n_layer = 2: no such setting; did you mean model.n_layer?",
    ("arch=gpt1",): "arch = gpt1: no such setting; did you mean model/arch?",
    ("model=smal",): "model = smal: no such file in conf/model/; choose one of medium, small, tiny\n",
    ("model/arch=bert",): "model/arch = bert: no such file in conf/model/arch/; choose one of gpt1, gpt2, modern\n",
    ("model.n_head=abc",): "model.n_head = abc: not a whole number",
    ("model.n_head=",): "model.n_head",
    ("model.dropout=1.0",): "model.dropout = 1.0",
    ("model.dropout=-0.1",): "model.dropout = -0.1",
    ("model.n_embd=10000000",): "model.n_embd = 10000000",
    ("model.n_embd=65536", "model.n_layer=1000"): "GiB of memory, and this machine has",
    ("model.context_length=1e300",): "model.context_length",
    ("~model",): "model = (missing): a run needs this group",
    ("~model.n_head",): "model.n_head = (missing)",
    ("model.n_head=${seed}x",): "model.n_head = 1337x: not a whole number",
    ("model.n_head=${nowhere}",): "override = ",
    ("data.batch_size=0",): "data.batch_size = 0",
    ("data.batch_size=-4",): "data.batch_size = -4",
    ("data.batch_size=10000000",): "GiB of memory, and this machine has",
    ("data.num_workers=-1",): "data.num_workers = -1: no such setting",
    ("data.tokenizer=word",): "data.tokenizer = word: unknown; choose one of char, byte, bpe",
    ("data.bpe_vocab_size=1",): "data.bpe_vocab_size = 1: must be from 256 to 65536",
    ("data.val_fraction=0",): "data.val_fraction = 0",
    ("data.val_fraction=1",): "data.val_fraction = 1",
    ("data.val_fraction=nan",): "data.val_fraction = nan",
    ("data.path=",): "data.path = ",
    ("data.folder=",): "data.folder = ",
    ("data.path=/dev/zero",): "data.path = /dev/zero: neither a file nor a folder",
    ("data.path='*.md'",): "data.path = *.md: no such file",
    ("data.path=missing.txt",): "data.path = missing.txt: no such file",
    ("data.path=nothing",): "data.path = nothing: a folder without files",
    ("data.path=empty.txt",): "data.path = empty.txt: 0 characters",
    ("data.path=same.txt",): "data.path = same.txt: only the character 'a'",
    ("data.path=short.txt",): "its validation split has 10 characters, fewer than the 17 of one window",
    ("data.path=latin.txt",): "data.path = latin.txt: not UTF-8 at byte 3",
    ("~data",): "data = (missing): a run needs this group",
    ("optimizer.lr=0",): "optimizer.lr = 0.0",
    ("optimizer.lr=-1",): "optimizer.lr = -1",
    ("optimizer.lr=nan",): "optimizer.lr = nan",
    ("optimizer.lr=inf",): "optimizer.lr = inf",
    ("optimizer.name=sgd",): "optimizer.name = sgd: unknown; choose one of adamw, muon",
    ("optimizer.betas=[0.9,1.0]",): "optimizer.betas",
    ("optimizer.betas=0.9",): "optimizer.betas = 0.9: not a list",
    ("optimizer.weight_decay=-1",): "optimizer.weight_decay = -1",
    ("~optimizer",): "optimizer = (missing): a run needs this group",
    ("scheduler.warmup_ratio=1.5",): "scheduler.warmup_ratio = 1.5",
    ("scheduler.min_lr_ratio=2",): "scheduler.min_lr_ratio = 2",
    ("scheduler.shape=square",): "scheduler.shape = square",
    ("~scheduler",): "scheduler = (missing): a run needs this group",
    ("trainer.gradient_clip_val=-1",): "trainer.gradient_clip_val = -1",
    ("trainer.accumulate_grad_batches=0",): "trainer.accumulate_grad_batches = 0",
    ("trainer.accumulate_grad_batches=-1",): "trainer.accumulate_grad_batches = -1",
    ("trainer.accumulate_grad_batches=1e18",): "trainer.accumulate_grad_batches = ",
    ("trainer.val_check_interval=0",): "trainer.val_check_interval = 0",
    ("trainer.log_every_n_steps=0",): "trainer.log_every_n_steps = 0",
    ("trainer.max_steps=0",): "trainer.max_steps = 0",
    ("trainer.max_steps=-1",): "trainer.max_steps = -1",
    ("trainer.max_steps=-5",): "trainer.max_steps = -5",
    ("trainer.max_steps=1.5",): "trainer.max_steps = 1.5: not a whole number",
    ("trainer.max_steps=1e18",): "trainer.max_steps = ",
    ("trainer.max_steps=1e30",): "trainer.max_steps = ",
    ("trainer.max_steps=" + "9" * 400,): "trainer.max_steps = ",
    ("+trainer.max_step=2",): "did you mean trainer.max_steps?",
    ("trainer.precision=16-mixed",): "trainer.precision = 16-mixed: not supported; choose one of auto, 32-true, bf16-mixed",
    ("trainer.precision=99",): "trainer.precision = 99: not supported; choose one of auto, 32-true, bf16-mixed",
    ("trainer.devices=abc",): "trainer.devices = abc: not a number of devices",
    ("trainer.devices=0",): "trainer.devices = 0: not a number of devices",
    ("trainer.devices=4096",): "trainer.devices = 4096: more processes than",
    ("trainer.accelerator=tpu",): "trainer.accelerator = tpu: not supported; choose one of auto, cpu, gpu, cuda, mps",
    ("trainer.profiler=[1]",): "trainer.profiler = [1]: not text",
    ("+trainer.profiler=[1]",): "trainer.profiler = [1]: not text",
    ("trainer.profiler=pytorch",): "trainer.profiler = pytorch: not supported; choose one of null, simple, advanced",
    ("trainer.detect_anomaly=foo",): "trainer.detect_anomaly = foo: not true or false",
    ("+trainer.benchmark=foo",): "trainer.benchmark = foo: no such setting",
    ("+trainer.fast_dev_run=true",): "trainer.fast_dev_run = True: no such setting",
    ("trainer.max_time=soon",): "trainer.max_time = soon: not a duration",
    ("trainer.num_nodes=0",): "trainer.num_nodes = 0",
    ("~trainer",): "trainer = (missing): a run needs this group",
    ("seed=-1",): "seed = -1",
    ("seed=4294967296",): "seed = 4294967296",
    ("seed=abc",): "seed = abc",
    ("~seed",): "seed = (missing): a run needs one",
    ("name=a/b/c",): "name = a/b/c: it becomes part of a folder's name",
    ("name=../../x",): "name = ../../x: it becomes part of a folder's name",
    ("name='${oc.env:HOME}'",): "it becomes part of a folder's name",
    ("name=''",): "name = : it becomes part of a folder's name",
    ("name=" + "x" * 300,): "it becomes part of a folder's name",
    ("run_dir=null",): "run_dir = null: no such setting",
    ("run_dir=5",): "run_dir = 5: no such setting",
    ("+max_steps=5",): "max_steps = 5: no such setting",
    ("callbacks=null",): "callbacks = null: no such file in conf/callbacks/; choose one of default",
    ("callbacks.samples=5",): "callbacks.samples = 5: not a group of settings",
    ("callbacks.samples.temperatures=[-1]",): "callbacks.samples.temperatures = -1.0: not a finite number from 0 up",
    ("callbacks.samples.temperatures=[]",): "callbacks.samples.temperatures = ",
    ("callbacks.samples.temperatures=0.8",): "callbacks.samples.temperatures = 0.8: not a list",
    ("callbacks.samples.tokens=-1",): "tokens = -1",
    ("callbacks.samples.tokens=1e12",): "callbacks.samples.tokens = ",
    ("callbacks.samples.colour=red",): "callbacks.samples.colour = red: no such setting",
    ("callbacks.samples._target_=os.system",): "callbacks.samples._target_ = os.system: no such setting",
    ("+callbacks.samples._target_=os.system",): "callbacks.samples._target_ = os.system: no such setting",
    ("+callbacks.samples._partial_=true",): "callbacks.samples._partial_ = True: no such setting",
    ("+callbacks.x._target_=lightning.pytorch.callbacks.LambdaCallback", "+callbacks.x.on_fit_start=os.system"): "callbacks.x",
    ("+callbacks.x._target_=lightning.pytorch.callbacks.StochasticWeightAveraging", "+callbacks.x.swa_lrs=0.1"): "callbacks.x",
    ("+callbacks.x._target_=lightning.pytorch.callbacks.LearningRateFinder",): "callbacks.x",
    ("+callbacks.x._target_=lightning.pytorch.callbacks.BatchSizeFinder",): "callbacks.x",
    ("+callbacks.best.monitor=val/los",): "callbacks.best.monitor = val/los: no such setting",
    ("callbacks.best.monitor=null",): "callbacks.best.monitor = null: no such setting",
    ("+callbacks.best.save_top_k=0",): "callbacks.best.save_top_k = 0: no such setting",
    ("+callbacks.best.filename=../../evil",): "callbacks.best.filename = ../../evil: no such setting",
    ("+callbacks.best.dirpath=http://127.0.0.1:9/x",): "callbacks.best.dirpath = ",
    ("callbacks=early_stopping", "+callbacks.early_stopping.monitor=foo"): "callbacks.early_stopping.monitor = foo: no such",
    ("callbacks=early_stopping", "callbacks.early_stopping.patience=abc"): "patience = abc: not a whole number",
    ("callbacks=early_stopping", "callbacks.early_stopping.patience=0"): "patience = 0",
    ("callbacks=ema", "callbacks.ema.decay=2"): "decay = 2",
    ("+logger.csv.path=/etc",): "logger.csv.path = /etc: no such setting",
    ("+logger.csv.path=/dev/full",): "logger.csv.path = /dev/full: no such setting",
    ("+logger.tensorboard.save_dir=/proc/nope",): "logger.tensorboard.save_dir = /proc/nope: no such setting",
    ("+logger.tensorboard.purge_step=abc",): "logger.tensorboard.purge_step = abc: no such setting",
    ("+logger.tensorboard.foo=1",): "logger.tensorboard.foo = 1: no such setting",
    ("+logger.wandb.project=x",): "logger.wandb",
    ("hydra.run.dir=same.txt/run",): "file = ",
    ("hydra.run.dir=/proc/x",): "file = /proc/x",
    ("hydra.run.dir=a/b/c", "model.n_head=3"): "model.n_head = 3",
    ("hydra.run.dir=a/b/c", "data.path=missing.txt"): "data.path = missing.txt",
    ("hydra.output_subdir=.hydra", "data.path=missing.txt"): "data.path = missing.txt",
    ("hydra/job_logging=default", "data.path=missing.txt"): "data.path = missing.txt",
    ("--max-steps", "3"): "options = --max-steps: settings have no dashes; write them as trainer.max_steps=3",
    ("--config-name=tune",): "options = --config-name=tune: settings have no dashes",
    ("--shell-completion",): "options = --shell-completion: settings have no dashes",
    ("-m", "seed=1,2", "model.n_head=3"): "model.n_head = 3",
    ("-m", "seed=1,2", "name=a/b"): "name = a/b",
    ("-m", "seed=1,2", "resume=last"): "resume = last: not for sweeps",
    ("model.n_head=1,2",): "model.n_head=1,2 = (several values): that is a sweep; add -m",
    ("trainer",): "override = ",
    ("a=b=c}",): "override = ",
}

if not torch.cuda.is_available():
    CONFIGURATIONS[("trainer=gpu", "trainer.accelerator=gpu")] = "trainer.accelerator, devices = gpu, 1"


@pytest.mark.parametrize("arguments", CONFIGURATIONS, ids=lambda arguments: " ".join(arguments)[:80])
def test_bad_configuration_is_one_line(arguments, call, text):
    Path("empty.txt").write_text("")
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
    assert CONFIGURATIONS[arguments] in err
    assert "Traceback" not in out + err
    assert set(Path().rglob("*")) == given


def test_valid_but_unusual_configuration_is_accepted(call, text):
    """A validation interval beyond the end, control characters, and a byte order mark are no mistakes."""
    text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes() + b"\x00\x1b")
    settings = [*TINY, f"data.path={text}", "callbacks.samples=null", "trainer.max_steps=1e0"]
    code, out, err = call(*settings, "trainer.val_check_interval=100", "hydra.run.dir=far")
    assert code == 0, err
    assert "after 1 steps" in out  # it was validated at the end
    assert err == f"note: data.path = {text}: it contains control characters, which are kept: '\\x00\\x1b'\n"


def test_folder_of_another_run_is_refused(call, trained, text):
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=4", "model.n_layer=1", "hydra.run.dir=run")
    assert code == 2
    assert "model.n_layer = 1: the run in" in err
    assert ONE_LINE.match(err)


def test_full_disk_is_noticed_before_training(call, text, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=4")
    assert code == 2
    assert "1,000 bytes free, and checkpoints take" in err
    assert ONE_LINE.match(err)
    assert not list(Path().glob("outputs/*"))


def test_names_in_any_script_are_accepted(call, text):
    code, out, err = call(*TINY, f"data.path={text}", "trainer.max_steps=1", "name=日本", "hydra.run.dir=läufe/erster Versuch")
    assert code == 0, err
    assert (Path("läufe/erster Versuch") / "result.json").exists()
    code, out, err = call("resume=läufe/erster Versuch", "trainer.max_steps=2")
    assert code == 0, err
    assert "after 2 steps" in out


def test_error_before_the_first_step_is_one_line_and_leaves_nothing(call, text, monkeypatch):
    from gpt.module import GPTModule

    def refuse(self) -> None:
        raise RuntimeError("this optimizer\ncannot be made")

    monkeypatch.setattr(GPTModule, "configure_optimizers", refuse)
    code, _, err = call(*TINY, f"data.path={text}", "trainer.max_steps=2")
    assert code == 2
    assert "RuntimeError: this optimizer cannot be made" in err
    assert ONE_LINE.match(err)
    assert not list(Path().glob("*"))


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
