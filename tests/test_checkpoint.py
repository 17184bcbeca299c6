import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from conftest import make_model
from gpt.checkpoint import FORMAT, atomic, find, load, read, write_text
from gpt.settings import UserError
from gpt.tokenizer import CharTokenizer


def content(**changes) -> dict:
    model = make_model()
    card = {
        "format": FORMAT,
        "model": vars(model.config),
        "tokenizer": CharTokenizer("abcdefghijk").state,
        "text_sha256": "",
        "config": {},
    }
    return {"gpt": card | changes, "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.ckpt"


def test_load_makes_the_same_model(path):
    torch.save(content(), path)
    model, tokenizer, card = load(path)
    ids = tokenizer.encode("abc")[None]
    assert torch.equal(model(ids), make_model().eval()(ids))
    assert not model.training
    assert card["tokenizer"]["vocabulary"] == "abcdefghijk"


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


def test_a_malicious_pickle_is_refused_by_name_and_not_run(path, tmp_path, monkeypatch):
    marker = tmp_path / "it_ran"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # an explicit weights_only=True is stronger
    for evil in (content(tokenizer={"kind": "char", "vocabulary": Evil(marker)}), Evil(marker)):
        torch.save(evil, path)
        with pytest.raises(UserError, match=r"refused, nothing was run: it asks to run (posix|os)\.system"):
            read(path)
    path.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(UserError, match="refused, nothing was run"):
        read(path)
    assert not marker.exists()


def damaged(path: Path, how: str) -> None:
    torch.save(content(), path)
    whole = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "text":
        path.write_text("To be, or not to be")
    elif how == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", "b")


@pytest.mark.parametrize("how", ["empty", "truncated", "text", "zip"])
def test_a_damaged_file_is_refused(path, how):
    damaged(path, how)
    with pytest.raises(UserError, match=r"truncated or not a checkpoint|refused, nothing was run"):
        read(path)


def broken(how: str) -> dict:
    made = content()
    card, tensors = made["gpt"], made["state_dict"]
    if how == "format":
        card["format"] = FORMAT + 1
    elif how == "no card":
        del made["gpt"]
    elif how == "huge":  # would take terabytes if it were believed
        card["model"] = card["model"] | {"n_embd": 10**6, "n_layer": 10**6}
    elif how == "long":
        card["model"] = card["model"] | {"context_length": 10**12}
    elif how == "no tensor":
        tensors["model.head.weight"] = "tensor"
    elif how == "no config":
        del card["config"]
    elif how == "other depth":
        card["model"] = card["model"] | {"n_layer": 1}
    elif how == "unknown key":
        card["model"] = card["model"] | {"_target_": "os.system"}
    elif how == "wrong type":
        card["model"] = card["model"] | {"n_head": "two"}
    elif how == "vocabulary":
        card["tokenizer"]["vocabulary"] = "abc"
    elif how == "nan":
        tensors["model.head.weight"][0, 0] = torch.nan
    elif how == "instantiator":  # by which Lightning's own loading would call what it names
        made["hyper_parameters"] = {"_instantiator": "os.system", "command": "touch it_ran"}
    elif how == "renamed":
        tensors["model.other.weight"] = tensors.pop("model.head.weight")
    return made


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("format", f"its format is {FORMAT + 1}, this version reads {FORMAT}"),
        ("no card", "not one of this project's"),
        ("huge", "its sizes ask for"),
        ("long", "longer than any model"),
        ("no tensor", "no tensor"),
        ("no config", "missing"),
        ("other depth", "its sizes ask for"),
        ("unknown key", "_target_"),
        ("wrong type", "not a whole number"),
        ("vocabulary", "3 tokens"),
        ("nan", "non-finite weights in 1 tensors"),
        ("instantiator", r"refused, nothing was run: it has hyper_parameters \(.*_instantiator.*os\.system"),
        ("renamed", "another architecture"),
    ],
)
def test_what_does_not_fit_together_is_refused(path, how, message):
    torch.save(broken(how), path)
    with pytest.raises(UserError, match=message):
        load(path)


def test_find(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no run under outputs"):
        find(None)
    for number, run in enumerate(["b", "sweeps/s/a"]):
        file = tmp_path / "outputs" / run / "checkpoints" / "best.ckpt"
        file.parent.mkdir(parents=True)
        file.touch()
        os.utime(file.parent, (number, number))
    assert find(None) == Path("outputs/sweeps/s/a/checkpoints/best.ckpt")
    assert find("outputs/b") == Path("outputs/b/checkpoints/best.ckpt")
    stopped = tmp_path / "outputs" / "c" / "checkpoints" / "last.ckpt"  # before its first validation
    stopped.parent.mkdir(parents=True)
    stopped.touch()
    os.utime(stopped.parent, (9, 9))
    assert find(None) == find("outputs/c") == Path("outputs/c/checkpoints/last.ckpt")
    assert find("outputs/b/checkpoints/best.ckpt") == Path("outputs/b/checkpoints/best.ckpt")
    with pytest.raises(UserError, match="no such file"):
        find("outputs/d")
    with pytest.raises(UserError, match="addresses are not read"):
        find("https://example.org/a.ckpt")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic(target) as file:
        file.write(b"half" * (1 // 0))
    monkeypatch.setattr(os, "replace", lambda *args: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_written_file_can_be_read_by_whom_the_umask_allows(tmp_path):
    write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "b.txt").stat().st_mode
