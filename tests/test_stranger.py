"""A run's folder may come from anybody. Whatever is in it is data: nothing runs, and nothing outside of it is touched."""

import http.server
import json
import os
import re
import resource
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import yaml

from conftest import ROOT

ONE_LINE = re.compile(r"\Aerror: [^\n]+\n\Z")
MORE = "trainer.max_steps=6"


def edit_checkpoint(run: Path, change, name: str = "last.ckpt") -> None:
    path = run / "checkpoints" / name
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def edit_config(run: Path, change) -> None:
    path = run / "config.yaml"
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values))


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A file of the user, outside of every run."""
    path = tmp_path / "home" / "precious" / "letter.txt"
    path.parent.mkdir(parents=True)
    path.write_text("dear reader")
    return path


def assert_refused(call, *arguments: str) -> str:
    code, out, err = call(*arguments)
    assert code == 2, out + err
    assert ONE_LINE.match(err), err
    assert "Traceback" not in out
    return err


@pytest.mark.parametrize("key", ["best_model_path", "last_model_path", "dirpath", "kth_best_model_path", "best_k_models"])
@pytest.mark.parametrize("callback", ["best", "last"])
def test_path_in_a_checkpoint_deletes_nothing(call, trained, precious, callback, key):
    """Lightning deletes the best checkpoint so far, recursively, by the path that a callback's state names."""
    target = f"{trained / 'checkpoints'}/../../{os.path.relpath(precious.parent, trained.parent)}"
    value = {target: torch.tensor(9.0)} if key == "best_k_models" else target

    def change(content: dict) -> None:
        content["callbacks"].setdefault(callback, {})[key] = value

    edit_checkpoint(trained, change)
    call(f"resume={trained}", MORE)
    assert precious.read_text() == "dear reader"


LINKED = [
    "sample.txt",
    "metrics.csv",
    "config.yaml",
    "run.json",
    "result.json",
    ".lock",
    ".lock.pid",
    "hparams.yaml",
    "error.txt",
]


@pytest.mark.parametrize("name", [*LINKED, "checkpoints/last.ckpt", "checkpoints/best.ckpt"])
def test_link_in_a_run_is_refused(call, trained, precious, name):
    path = trained / name
    if path.exists() and name != ".lock":
        precious.write_bytes(path.read_bytes())
    before = precious.read_bytes()
    path.unlink(missing_ok=True)
    path.symlink_to(precious)
    assert "a link" in assert_refused(call, f"resume={trained}", MORE)
    assert precious.read_bytes() == before
    assert path.is_symlink()


def test_linked_folder_in_a_run_is_refused(call, trained, precious):
    (trained / "checkpoints").rename(precious.parent / "checkpoints")
    (trained / "checkpoints").symlink_to(precious.parent / "checkpoints")
    assert "a link" in assert_refused(call, f"resume={trained}", MORE)


def test_link_in_a_new_folder_is_refused(call, text, precious):
    Path("run").mkdir()
    Path("run/metrics.csv").symlink_to(precious)
    assert "a link" in assert_refused(call, "model=tiny", f"data.path={text}", "trainer.max_steps=1", "hydra.run.dir=run")
    assert precious.read_text() == "dear reader"


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_is_not_replaced(call, trained, kind):
    path = trained / "sample.txt"
    path.unlink()
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    assert_refused(call, f"resume={trained}", MORE)
    assert path.is_fifo() or path.is_dir()


def test_text_in_a_checkpoint_is_only_text(call, trained):
    def change(content: dict) -> None:
        content["callbacks"]["samples"]["history"] = [(4, "touch it_ran\x1b]0;title\x07")]

    edit_checkpoint(trained, change)
    call(f"resume={trained}", MORE)
    assert not Path("it_ran").exists()


HOSTILE_SETTINGS = {
    "target": lambda values: values["callbacks"]["samples"].update(_target_="os.system"),
    "new callback": lambda values: values["callbacks"].update(x={"_target_": "lightning.pytorch.callbacks.LambdaCallback"}),
    "Lightning's callback": lambda values: values["callbacks"].update(LearningRateMonitor={}),
    "path of a checkpoint": lambda values: values["callbacks"]["best"].update(dirpath="/tmp"),
    "path of a table": lambda values: values["logger"]["csv"].update(path="/tmp/x"),
    "path of events": lambda values: values["logger"]["tensorboard"].update(save_dir="/tmp"),
    "folder of the run": lambda values: values.update(run_dir="/tmp"),
    "hydra": lambda values: values.update(hydra={"run": {"dir": "/tmp"}}),
    "interpolation": lambda values: values.update(name="${oc.env:HOME}"),
    "name": lambda values: values.update(name="../../x"),
    "sizes": lambda values: values["model"].update(n_embd=2**20),
    "steps": lambda values: values["trainer"].update(max_steps=10**30),
    "text": lambda values: values["data"].update(path="/etc/passwd"),
    "no model": lambda values: values.pop("model"),
    "no list": lambda values: values.update(callbacks=[]),
}


@pytest.mark.parametrize("edit", HOSTILE_SETTINGS)
def test_hostile_configuration_is_refused(call, trained, edit):
    edit_config(trained, HOSTILE_SETTINGS[edit])
    assert_refused(call, f"resume={trained}", MORE)


def test_nothing_is_sent_to_an_address(call, trained, monkeypatch):
    """An interpolation in a stranger's configuration must not read the environment, nor a path be an address."""
    requests = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)

        do_HEAD = do_PUT = do_POST = do_GET

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/${{oc.env:MY_SECRET}}"
    monkeypatch.setenv("MY_SECRET", "hunter2")
    edits = [
        lambda values: values["callbacks"]["best"].update(dirpath=address),
        lambda values: values["data"].update(path=address),
        lambda values: values["data"].update(folder=address, path=None),
        lambda values: values.update(name=address),
    ]
    original = (trained / "config.yaml").read_text()
    try:
        for edit in edits:
            (trained / "config.yaml").write_text(original)
            edit_config(trained, edit)
            assert "hunter2" not in assert_refused(call, f"resume={trained}", MORE)
    finally:
        server.shutdown()
        server.server_close()
    assert requests == []


def test_finished_run_without_checkpoints_is_refused(call, trained):
    """To begin at step 0 would overwrite its metrics, sample and result."""
    before = {path.name: path.read_bytes() for path in trained.glob("*.*") if path.is_file()}
    for path in (trained / "checkpoints").iterdir():
        path.unlink()
    assert "no checkpoint to go on from" in assert_refused(call, f"resume={trained}", MORE)
    assert {path.name: path.read_bytes() for path in trained.glob("*.*") if path.is_file()} == before


def test_checkpoint_that_lightning_would_prefer_is_refused(call, trained):
    (trained / "hpc_ckpt_1.ckpt").write_bytes((trained / "checkpoints" / "last.ckpt").read_bytes())
    assert "hpc_ckpt_1.ckpt" in assert_refused(call, f"resume={trained}", MORE)


def test_text_that_a_stranger_names_is_not_copied(call, trained, tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("my secret " * 1000)
    monkeypatch.setattr("gpt.data.IN_MEMORY", 100)
    edit_config(trained, lambda values: values["data"].update(path=str(secret)))
    assert "not the text" in assert_refused(call, f"resume={trained}", MORE)
    assert not Path("data").exists()


def test_terminal_is_not_commanded(call, trained):
    (trained / "sample.txt").write_text("fair \x1b]0;title\x07 Juliet")
    code, out, _ = call(f"resume={trained}")  # it has ended, and is reported
    assert code == 0
    assert "fair \\x1b]0;title\\x07 Juliet" in out


def test_sizes_of_configuration_and_checkpoint_must_agree(call, trained):
    edit_checkpoint(trained, lambda content: content["gpt"]["config"]["model"].update(n_embd=2048))
    edit_config(trained, lambda values: values["model"].update(n_embd=2048))
    assert "model.n_embd" in assert_refused(call, f"resume={trained}", MORE)


def test_data_folder_of_a_stranger_is_not_written_to(call, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("gpt.data.IN_MEMORY", 100, raising=False)
    edit_config(trained, lambda values: values["data"].update(folder=str(tmp_path / "elsewhere")))
    assert call(f"resume={trained}", MORE)[0] == 0
    assert not (tmp_path / "elsewhere").exists()


DEVICES = ["/dev/full", "/dev/null"]


@pytest.mark.parametrize("place", DEVICES)
def test_device_is_never_replaced(place):
    from gpt.files import write_text
    from gpt.settings import UserError

    before = os.stat(place)
    with pytest.raises(UserError, match="a device or a pipe"):
        write_text(place, "x")
    assert os.stat(place).st_rdev == before.st_rdev


SWAPS = {
    "other seed": ["seed=2"],
    "other rate": ["optimizer.lr=0.1"],
    "other dropout": ["model.dropout=0.5"],
}


@pytest.mark.parametrize("swap", SWAPS)
def test_checkpoint_of_another_run_is_refused(call, trained, text, swap):
    from conftest import TINY

    settings = [*TINY, f"data.path={text}", "trainer.max_steps=4", *SWAPS[swap], "hydra.run.dir=other"]
    assert call(*settings)[0] == 0
    before = {path.name: path.read_bytes() for path in trained.glob("*.*") if path.is_file()}
    (trained / "checkpoints" / "last.ckpt").write_bytes(Path("other/checkpoints/last.ckpt").read_bytes())
    assert SWAPS[swap][0].split("=")[0] in assert_refused(call, f"resume={trained}", MORE)
    assert {path.name: path.read_bytes() for path in trained.glob("*.*") if path.is_file()} == before


def test_checkpoint_of_another_text_is_refused(call, trained, text, tmp_path):
    from conftest import TINY

    other = tmp_path / "other.txt"
    other.write_text(text.read_text().replace("soft", "fost"))
    assert call(*TINY, f"data.path={other}", "trainer.max_steps=4", "hydra.run.dir=other")[0] == 0
    (trained / "checkpoints" / "last.ckpt").write_bytes(Path("other/checkpoints/last.ckpt").read_bytes())
    assert "the checkpoint of another run" in assert_refused(call, f"resume={trained}", MORE)


@pytest.mark.parametrize(
    ("group", "key", "value"), [("optimizer", "lr", 0.5), ("data", "batch_size", 8), ("scheduler", "shape", "cosine")]
)
def test_edited_setting_is_refused(call, trained, group, key, value):
    edit_config(trained, lambda values: values[group].update({key: value}))
    assert f"{group}.{key}" in assert_refused(call, f"resume={trained}", MORE)


def test_edited_seed_is_refused(call, trained):
    edit_config(trained, lambda values: values.update(seed=7))
    assert "seed = 7" in assert_refused(call, f"resume={trained}", MORE)


def test_missing_last_checkpoint_is_refused(call, trained):
    """To begin at step 0 would overwrite best.ckpt."""
    (trained / "checkpoints" / "last.ckpt").unlink()
    best = (trained / "checkpoints" / "best.ckpt").read_bytes()
    assert "last.ckpt: missing" in assert_refused(call, f"resume={trained}", MORE)
    assert (trained / "checkpoints" / "best.ckpt").read_bytes() == best


EDITS = {
    "no global_step": lambda content: content.pop("global_step"),
    "negative step": lambda content: content.update(global_step=-1),
    "step is text": lambda content: content.update(global_step="4"),
    "step beyond the end": lambda content: content.update(global_step=10**9),
    "no callbacks": lambda content: content.pop("callbacks"),
    "callbacks is text": lambda content: content.update(callbacks="none"),
    "unknown callback": lambda content: content["callbacks"].update(stranger={"a": 1}),
    "score is text": lambda content: content["callbacks"]["best"].update({key: "low" for key in content["callbacks"]["best"]}),
    "optimizer is empty": lambda content: content.update(optimizer_states=[{}]),
    "optimizer of other shapes": lambda content: content["optimizer_states"][0]["state"][0].update(
        {key: torch.zeros(3) for key in content["optimizer_states"][0]["state"][0]}
    ),
    "optimizer is not finite": lambda content: [
        value.fill_(torch.nan)
        for value in content["optimizer_states"][0]["state"][0].values()
        if isinstance(value, torch.Tensor) and value.ndim
    ],
    "weights are not finite": lambda content: content["state_dict"]["model.head.weight"].fill_(torch.nan),
    "a weight is missing": lambda content: content["state_dict"].pop("model.head.weight"),
    "a weight has another shape": lambda content: content["state_dict"].update({"model.head.weight": torch.zeros(2, 2)}),
    "extra part": lambda content: content.update(extra={"a": 1}),
    "hyperparameters": lambda content: content.update(hyper_parameters={"_instantiator": "os.system"}),
    "metadata with newlines": lambda content: content["gpt"].update({"format": "3\nerror: all is well\x1b[2J"}),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_checkpoint_is_one_line(call, trained, edit):
    edit_checkpoint(trained, EDITS[edit])
    config = (trained / "config.yaml").read_bytes()
    assert len(assert_refused(call, f"resume={trained}", MORE)) < 700
    assert (trained / "config.yaml").read_bytes() == config


def test_what_is_not_used_of_a_checkpoint_may_be_anything(call, trained):
    unused = {"epoch": "x", "loops": [], "lr_schedulers": ["x"], "pytorch-lightning_version": "1.4.0"}
    edit_checkpoint(trained, lambda content: content.update(unused))
    code, _, err = call(f"resume={trained}", MORE)
    assert code == 0, err
    assert json.loads((trained / "result.json").read_text())["step"] == 6


TABLES = {
    "empty": b"",
    "not a table": b"\x89PNG\r\n\x1a\n\x00\x00",
    "no step": b"a,b\n1,2\n",
    "text for a number": b"step,val/loss\none,2\n",
    "loss is text": b"step,val/loss\n3,low\n",
    "huge cell": b"step,val/loss\n3," + b"9" * 200_000 + b"\n",
    "NUL": b"step,val/loss\n3,\x00\n",
    "too many cells": b"step,val/loss\n3,1,2,3\n",
}


@pytest.mark.parametrize("damage", TABLES)
def test_damaged_table_is_one_line(call, trained, damage):
    (trained / "metrics.csv").write_bytes(TABLES[damage])
    assert "metrics.csv" in assert_refused(call, f"resume={trained}", MORE)
    assert (trained / "metrics.csv").read_bytes() == TABLES[damage]


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "result.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"{}", b"null", b"[" * 3000])
def test_damaged_file_of_a_run_is_one_line(call, trained, name, content):
    (trained / name).write_bytes(content)
    assert_refused(call, f"resume={trained}", MORE)
    assert (trained / name).read_bytes() == content


def test_loading_takes_no_more_memory_than_the_file_is_large(trained):
    """A small file of tensors without strides that claims a width of 30,000 would take gigabytes if it were believed."""

    def change(content: dict) -> None:
        content["gpt"]["model"].update(n_embd=30_000, n_head=1)
        for name, tensor in content["state_dict"].items():
            content["state_dict"][name] = torch.zeros(1).expand(
                tuple(size * 1875 if size == 16 else size for size in tensor.shape)
            )

    edit_checkpoint(trained, change, "best.ckpt")
    command = [sys.executable, str(ROOT / "scripts" / "sample.py"), str(trained), "--prompt", "O", "--tokens", "1"]
    limit = 8 * 2**30  # of address space, which torch's libraries take a part of
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    )
    assert done.returncode == 2, done.stderr
    assert ONE_LINE.match(done.stderr)


def test_user_files_beside_a_run_stay(call, trained):
    mine = trained / "notes" / ".plan.tmp-1"
    mine.parent.mkdir()
    mine.write_text("mine")
    (trained / "checkpoints" / ".folder.tmp-2").mkdir()
    code, _, err = call(f"resume={trained}", MORE)
    assert code == 0, err
    assert mine.read_text() == "mine"
    assert (trained / "checkpoints" / ".folder.tmp-2").is_dir()


def test_result_of_a_stranger_is_checked(call, trained):
    result = json.loads((trained / "result.json").read_text())
    (trained / "result.json").write_text(json.dumps(result | {"final_val_loss": "low"}))
    assert "result.json" in assert_refused(call, f"resume={trained}")
