"""Finding, reading and loading checkpoints. A file that does not fit together is one line, before a model is made of it."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import make_model
from gpt.checkpoint import FORMAT, find, load, read, tensors_in
from gpt.checkpoint_io import AtomicCheckpointIO
from gpt.settings import UserError
from gpt.tokenizer import CharTokenizer


def make_content(arch: str = "modern") -> dict:
    model = make_model(arch)
    metadata = {
        "format": FORMAT,
        "model": dict(vars(model.config)),
        "tokenizer": CharTokenizer("abcdefghijk").state,
        "text_sha256": "",
        "config": {},
    }
    return {"gpt": metadata, "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.ckpt"


def test_load_makes_the_same_model(path, arch):
    torch.save(make_content(arch), path)
    model, tokenizer, metadata = load(path)
    ids = tokenizer.encode("abc")[None]
    assert torch.equal(model(ids), make_model(arch).eval()(ids))
    assert not model.training
    assert metadata["tokenizer"]["vocabulary"] == "abcdefghijk"


def test_every_checkpoint_of_a_run_holds_plain_types_and_loads(trained):
    for name in ("best", "last"):
        file = trained / "checkpoints" / f"{name}.ckpt"
        raw = torch.load(file, weights_only=True)
        assert {"optimizer_states", "lr_schedulers", "gpt", "state_dict"} <= set(raw)
        assert raw["gpt"]["config"]["model"]["n_embd"] == 16
        load(file)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_malicious_checkpoint_is_refused_by_name_and_not_run(path, tmp_path):
    content = make_content()
    content["gpt"]["tokenizer"] = {"kind": "char", "vocabulary": Evil(tmp_path / "it_ran")}
    torch.save(content, path)
    with pytest.raises(UserError, match=r"refused, nothing was run: it asks to run (posix|nt|os)\.system; use a checkpoint"):
        load(path)
    assert not (tmp_path / "it_ran").exists()


DAMAGE = {
    "empty": lambda whole: b"",
    "truncated": lambda whole: whole[: len(whole) // 2],
    "text": lambda whole: b"To be, or not to be",
    "flipped bits": lambda whole: whole[:1000] + bytes(byte ^ 255 for byte in whole[1000:1100]) + whole[1100:],
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_file_is_refused(path, how):
    torch.save(make_content(), path)
    path.write_bytes(DAMAGE[how](path.read_bytes()))
    with pytest.raises(UserError, match=rf"truncated or not a checkpoint \({path.stat().st_size:,} bytes\); use another one"):
        read(path)


def test_what_is_not_a_file_is_refused(path, tmp_path):
    os.mkfifo(path)  # reading it would wait for ever
    for place in (path, tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="no such file"):
            read(place)


def claim(**changes):
    return lambda content: content["gpt"]["model"].update(changes)


def spread(content: dict) -> None:
    """Weights without data that fit the sizes claimed."""
    content["gpt"]["model"].update(n_embd=30_000, n_head=1)
    for name, tensor in content["state_dict"].items():
        shape = tuple(size // 16 * 30_000 if size % 16 == 0 else size for size in tensor.shape)
        content["state_dict"][name] = torch.zeros(1).expand(shape)


EDITS = {
    "format": (lambda c: c["gpt"].update(format=FORMAT + 1), f"its format is {FORMAT + 1}, this version reads {FORMAT}"),
    "format is text": (lambda c: c["gpt"].update(format="3\nerror: \x1b[2J" + "x" * 9999), r"its format is 3 error: \\x1b\[2Jx+"),
    "format is a tensor": (lambda c: c["gpt"].update(format=torch.tensor([3, 3])), "it has tensors in its metadata"),
    "size is a tensor": (claim(n_layer=torch.tensor(2)), "it has tensors in its metadata"),
    "setting is a tensor": (lambda c: c["gpt"].update(config={"a": [torch.ones(3)]}), "it has tensors in its metadata"),
    "no metadata": (lambda c: c.pop("gpt"), "not one of this project's"),
    "metadata is a list": (lambda c: c.update(gpt=[]), "not one of this project's"),
    "no weights": (lambda c: c.update(state_dict={}), "holds 0 parameters"),
    "no model": (lambda c: c["gpt"].pop("model"), r"its metadata makes no model \('model'\)"),
    "model is text": (lambda c: c["gpt"].update(model="GPT"), "its metadata makes no model"),
    "huge": (claim(n_embd=2**16, n_head=1), "where its sizes ask for"),
    "larger than any": (claim(n_embd=10**12), "n_embd"),
    "long": (claim(context_length=2**17, n_embd=2**14), "longer than any model here|where its sizes"),
    "endless": (claim(context_length=10**600), "context_length = "),
    "other depth": (claim(n_layer=1), "where its sizes ask for"),
    "unknown key": (claim(_target_="os.system"), "_target_ = os.system: no such setting"),
    "long key": (claim(**{"x" * 10**6: 1}), r"\(model\.x{100,}\.\.\.\)"),
    "wrong type": (claim(n_head="two"), "n_head = two: not a whole number"),
    "no vocabulary size": (claim(vocab_size=None), "vocab_size = None"),
    "other vocabulary": (lambda c: c["gpt"]["tokenizer"].update(vocabulary="abc"), "its tokenizer has 3 tokens"),
    "tokenizer is text": (lambda c: c["gpt"].update(tokenizer="abc"), "its metadata makes no model"),
    "tokenizer of no kind": (lambda c: c["gpt"].update(tokenizer={"kind": "os:system"}), "tokenizer"),
    "no configuration": (lambda c: c["gpt"].pop("config"), r"config, text_sha256 = \(missing\)"),
    "no hash": (lambda c: c["gpt"].update(text_sha256=None), r"config, text_sha256 = \(missing\)"),
    "weight is text": (lambda c: c["state_dict"].update({"model.head.weight": "x"}), "head.weight is no tensor of weights"),
    "weight of integers": (
        lambda c: c["state_dict"].update({"model.head.weight": torch.ones(11, 16, dtype=torch.int64)}),
        "head.weight is no tensor of weights",
    ),
    "weight is nan": (
        lambda c: c["state_dict"]["model.head.weight"].fill_(torch.nan),
        "non-finite weights in 1 tensors, head.weight first",
    ),
    "weight is transposed": (
        lambda c: c["state_dict"].update({"model.head.weight": torch.zeros(16, 11)}),
        "another architecture than its metadata says: head.weight",
    ),
    "weight is renamed": (
        lambda c: c["state_dict"].update({"model.other.weight": c["state_dict"].pop("model.head.weight")}),
        "another architecture than its metadata says: head.weight",
    ),
    "other architecture": (claim(norm_position="post", conv_width=0), "where its sizes ask for"),
    "weights without data": (spread, r"refused, nothing was run: it holds a tensor of shape"),
    "instantiator": (  # Lightning's own loading would call what it names
        lambda c: c.update(hyper_parameters={"_instantiator": "os.system", "command": "touch it_ran"}),
        r"refused, nothing was run: it has hyper_parameters \(.*_instantiator.*os\.system",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_checkpoint_is_one_line(path, edit):
    change, message = EDITS[edit]
    content = make_content()
    change(content)
    torch.save(content, path)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_find_takes_a_file_or_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("b/checkpoints/best.ckpt", "b/checkpoints/last.ckpt", "c/checkpoints/last.ckpt"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).touch()
    assert find("b") == find("b/checkpoints/best.ckpt") == Path("b/checkpoints/best.ckpt")
    assert find("c") == Path("c/checkpoints/last.ckpt")  # stopped before its first validation


@pytest.mark.parametrize("place", ["outputs/d", "d.ckpt", "", "x" * 5000, "a\0b"])
def test_find_refuses_what_is_not_there(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        find(place)


def test_find_refuses_addresses():
    with pytest.raises(UserError, match="addresses are not read"):
        find("https://example.org/a.ckpt")


def test_saved_checkpoint_is_whole_or_the_old_one(path, monkeypatch):
    storage = AtomicCheckpointIO()
    storage.save_checkpoint({"a": torch.ones(3)}, path)

    def fail(*arguments) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=7))
    message = r"not written, 4,000 bytes needed and 7 free \(No space left on device\); make room and resume"
    with pytest.raises(UserError, match=message):
        storage.save_checkpoint({"a": [torch.ones(1000)]}, path)
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.ones(3))
    assert list(path.parent.iterdir()) == [path]


def test_tensors_are_found_inside_dictionaries_and_lists():
    assert [tensor.item() for tensor in tensors_in({"a": [torch.tensor(1), ({"b": torch.tensor(2)}, 3)], "c": "d"})] == [1, 2]
