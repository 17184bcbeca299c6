"""Finding, reading and loading checkpoints. What does not fit is told in one line, before a model is made."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from conftest import ROOT, make_model, same
from gpt.checkpoint import FORMAT, find, load, read, write
from gpt.errors import UserError
from gpt.tokenizer import CharTokenizer


def make_content(arch: str = "modern", **changes) -> dict:
    model = make_model(arch, **changes)
    metadata = {"format": FORMAT, "model": model.config.model_dump(mode="json"), "text_sha256": "", "step": 3}
    metadata |= {"tokenizer": CharTokenizer("abcdefghijk").state, "config": {}}
    return {"gpt": metadata, "state_dict": model.state_dict()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.safetensors"


def edit_header(path: Path, name: str, value: str) -> None:
    """Put another text in the header of a file. Its tensors stay."""
    with safetensors.safe_open(path, "pt") as file:
        texts = file.metadata()
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, texts | {name: value})


# What is written comes back


def test_load_makes_the_same_model(path, arch):
    write(path, make_content(arch))
    model, tokenizer, metadata = load(path)
    ids = tokenizer.encode("abc")[None]
    assert torch.equal(model(ids), make_model(arch).eval()(ids))
    assert not model.training
    assert metadata["tokenizer"]["vocabulary"] == "abcdefghijk"


def test_everything_comes_back_exactly(path):
    shared = torch.randn(3, 4)
    training = {
        "numbers": [0.1, -1e-300, 10**20, 1 / 3, True, None, "日本\n"],
        "states": {0: {"step": torch.tensor(5.0), "m": torch.ones(2, dtype=torch.bfloat16)}, 1: {}},
        "nested": [[1, [2.5, torch.arange(3)]], {"a": {"b": []}}, torch.zeros(0, 4), torch.tensor([True])],
        "part": torch.arange(10.0)[2:8:2],
        "transposed": shared.T,
        "again": shared,
    }
    content = make_content("gpt1")  # whose head is the token embedding
    write(path, content | training | {"tuple": (1, "b")})
    found = read(path)
    assert same(found, content | training | {"tuple": [1, "b"]})
    assert found["states"][0]["m"].dtype == torch.bfloat16
    assert found["states"][0]["step"].shape == ()
    weights = found["state_dict"]
    assert weights["head.weight"].data_ptr() == weights["tokens.weight"].data_ptr()
    assert not os.access(path, os.X_OK)


def test_any_program_reads_the_weights_by_their_names(trained):
    weights = safetensors.torch.load_file(trained / "checkpoints" / "best.safetensors")
    assert weights["tokens.weight"].shape == (29, 16)
    assert {"blocks.0.attn.qkv.weight", "head.weight"} <= weights.keys()
    own = {name: tensor for name, tensor in weights.items() if not name.startswith("training/draft/")}
    assert same(own, read(find(trained))["state_dict"])


def test_best_is_a_model_and_last_what_training_continues_from(trained):
    best, last = (read(trained / "checkpoints" / f"{name}.safetensors") for name in ("best", "last"))
    assert best.keys() == {"gpt", "state_dict", "draft"}
    assert last.keys() == {"gpt", "state_dict", "draft", "global_step", "optimizer_states", "callbacks"}
    assert best["gpt"]["config"]["model"]["n_embd"] == 16
    assert best["gpt"]["step"] == last["gpt"]["step"] == last["global_step"] == 4
    ((step, text),) = last["callbacks"]["samples"]["history"]
    assert (step, text) == (4, (trained / "sample.txt").read_text())
    for name in ("best", "last"):
        load(trained / "checkpoints" / f"{name}.safetensors")


def test_what_no_checkpoint_can_hold_is_refused_and_the_old_one_stays(path):
    write(path, make_content())
    before = path.read_bytes()
    with pytest.raises(TypeError, match=r"training/a/0/b is a set, which no checkpoint can hold"):
        write(path, make_content() | {"a": [{"b": {1}}]})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# What is damaged, foreign or too much is refused


def test_truncated_file_is_refused(path):
    write(path, make_content() | {"optimizer_states": [torch.zeros(99)]})
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, *range(100, len(whole), len(whole) // 50), len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"truncated or not a checkpoint \(.+\); use"):
            read(path)


def test_one_flipped_bit_anywhere_in_the_tensors_is_noticed(path):
    write(path, make_content() | {"optimizer_states": [torch.zeros(99)]})
    whole = path.read_bytes()
    start = 8 + int.from_bytes(whole[:8], "little")
    for position in (start, *range(start, len(whole), (len(whole) - start) // 150), len(whole) - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged: its tensors are not those that were written"):
            read(path)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_foreign_files_are_refused_and_nothing_of_them_is_run(path, tmp_path):
    safetensors.torch.save_file({"tokens.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="not one of this project's"):
        read(path)
    for write_foreign in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))):
        write_foreign(Evil(tmp_path / "it_ran"), path)
        with pytest.raises(UserError, match="truncated or not a checkpoint"):
            read(path)
    assert not (tmp_path / "it_ran").exists()


def test_header_larger_than_100_mb_is_not_read(path):
    path.write_bytes((10**8 + 1).to_bytes(8, "little") + b"{")
    os.truncate(path, 2 * 10**8)  # with a hole, which takes no space
    with pytest.raises(UserError, match="header too large"):
        read(path)


BROKEN, FITS_NOT = "its header is damaged", "where its sizes ask for"
HEADERS = [
    ("gpt", "{", BROKEN),
    ("gpt", "[" * 10**5, BROKEN),
    ("tied", '{"a": "b"}', BROKEN),
    ("training", '{"items": [[1]]}', BROKEN),
    ("sha256", "", "damaged: its tensors are not those"),
]
METADATA: list[tuple[dict, str]] = [
    ({"format": 4}, "its format is 4, this version reads 5; use the version that wrote it"),
    ({"format": "5\n\x1b[2J" + "x" * 9999}, r"its format is 5 \\x1b\[2Jx+"),
    ({"model": {"_target_": "os.system"}}, r"model\._target_ = os\.system: no such setting"),
    ({"model": {"n_embd": 10**12}}, r"model\.n_embd = 1000000000000: should be less"),
    ({"model": {"n_embd": 2**16}}, FITS_NOT),
    ({"model": {"norm_position": "post", "conv_width": 0}}, FITS_NOT),
    ({"model": {"context_length": 2**17, "n_embd": 2**14}}, "longer than that of any model here"),
    ({"model": {"vocab_size": None}}, "vocab_size = None"),
    ({"tokenizer": {"vocabulary": "abc"}}, "its tokenizer has 3 tokens"),
    ({"tokenizer": {"kind": "os:system"}}, "its metadata makes no model"),
]


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(("name", "text", "message"), HEADERS)
def test_damaged_header_is_one_line(path, name, text, message):
    write(path, make_content() | {"global_step": 1})
    edit_header(path, name, text)
    assert_refused(path, message)


def with_metadata(content: dict, changes: dict) -> dict:
    metadata = content["gpt"]
    changes = {key: metadata[key] | new if isinstance(new, dict) else new for key, new in changes.items()}
    return content | {"gpt": metadata | changes}


@pytest.mark.parametrize(("changes", "message"), METADATA)
def test_metadata_that_make_no_model_are_one_line(path, changes, message):
    write(path, with_metadata(make_content(), changes))
    assert_refused(path, message)


WEIGHTS: dict[str, Callable[[dict], object]] = {
    FITS_NOT: lambda weights: weights.pop("head.weight"),
    "non-finite weights in 1 tensors, head": lambda weights: weights["head.weight"].fill_(torch.nan),
    "another architecture .* head": lambda weights: weights.update({"head.weight": torch.zeros(16, 11)}),
    "another architecture": lambda weights: weights.update({"other": weights.pop("head.weight")}),
}


@pytest.mark.parametrize("message", WEIGHTS)
def test_weights_that_do_not_fit_are_one_line(path, message):
    content = make_content()
    WEIGHTS[message](content["state_dict"])
    write(path, content)
    assert_refused(path, message)


def test_loading_takes_no_more_memory_than_the_file(tmp_path):
    """What a process needs for a file whose sizes ask for gigabytes, and then for one of 50 MB."""
    honest, hostile = tmp_path / "honest.safetensors", tmp_path / "hostile.safetensors"
    write(honest, make_content(n_embd=512, n_head=1, n_layer=4))
    write(hostile, with_metadata(make_content(), {"model": {"n_embd": 30_000}}))
    code = """
import contextlib, resource, sys
from gpt.checkpoint import load
for path in sys.argv[1:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(ValueError):
        load(path)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(hostile), str(honest)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    refused, loaded = (int(kilobytes) * 1024 for kilobytes in done.stdout.split())
    assert refused < 2**25
    assert loaded < 2.5 * honest.stat().st_size  # the file, and the model


# Where a checkpoint is looked for


def test_find_takes_a_file_or_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("b/checkpoints/best", "b/checkpoints/last", "c/checkpoints/last"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{place}.safetensors").touch()
    best = Path("b/checkpoints/best.safetensors")
    assert find("b") == find(Path("b")) == find(str(best)) == best
    assert find("c") == Path("c/checkpoints/last.safetensors")  # stopped before its first validation
    assert find("pretrained").name == "shakespeare.safetensors"


@pytest.mark.parametrize("place", ["outputs/d", "d.safetensors", "", "x" * 5000, "a\0b"])
def test_find_refuses_what_is_not_there(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no such file; give a run folder or file"):
        find(place)


def test_former_checkpoint_is_named_with_the_program_that_converts_it(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    message = r"best\.ckpt: from an old version; python scripts/convert_checkpoint\.py RUN converts it"
    for place in (".", "checkpoints/best.safetensors", "checkpoints/best.ckpt"):
        with pytest.raises(UserError, match=message):
            find(tmp_path / place)
    (tmp_path / "checkpoints" / "best.safetensors").touch()  # it was converted
    assert find(tmp_path).suffix == ".safetensors"
