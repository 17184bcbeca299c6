"""Finding, reading and loading checkpoints. What does not fit is told in one line, before a model is made."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import convert_checkpoint
import pytest
import safetensors.torch
import torch
import yaml

from conftest import ROOT, assert_same_run, make_model, read_last, same
from gpt.checkpoint import FORMAT, LARGEST_HEADER, find, load, read, write
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


def test_any_program_reads_the_weights_and_last_has_what_training_continues_from(trained):
    weights = safetensors.torch.load_file(trained / "checkpoints/best.safetensors")
    assert {"tokens.weight", "blocks.0.attn.qkv.weight", "head.weight"} <= weights.keys()
    best, last = read_last(trained, "best"), read_last(trained)
    own = {name: tensor for name, tensor in weights.items() if not name.startswith("training/draft/")}
    assert same(own, best["state_dict"])
    assert best.keys() == {"gpt", "state_dict", "draft"}
    assert last.keys() == {"gpt", "state_dict", "draft", "global_step", "optimizer_states", "callbacks"}
    assert best["gpt"]["config"]["model"]["n_embd"] == 16
    assert best["gpt"]["step"] == last["gpt"]["step"] == last["global_step"] == 4
    assert last["callbacks"]["samples"]["history"] == [[4, (trained / "sample.txt").read_text()]]


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


def test_header_larger_than_64_mb_is_not_read(path):
    path.write_bytes((LARGEST_HEADER + 1).to_bytes(8, "little") + b"{")
    os.truncate(path, 2 * LARGEST_HEADER)  # with a hole, which takes no space
    with pytest.raises(UserError, match="no header of such a file"):
        read(path)


def test_loading_imports_no_compiler():
    """It would take most of a second, of which each text that is sampled would have to wait."""
    code = "import sys, gpt; gpt.load('pretrained'); sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


BROKEN, FITS_NOT = "its header is damaged", "where its sizes ask for"
HEADERS = [(("gpt", "{"), BROKEN), (("gpt", "[" * 10**5), BROKEN), (("tied", '{"a": "b"}'), BROKEN)]
HEADERS += [(("training", '{"items": [[1]]}'), BROKEN), (("sha256", ""), "its tensors are not those")]
CONTENTS: list[tuple[dict, str]] = [  # of the metadata, or of the weights, of which None is left out
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
    ({"head.weight": None}, FITS_NOT),
    ({"head.weight": torch.full((11, 16), torch.nan)}, "non-finite weights in 1 tensors, head"),
    ({"head.weight": torch.zeros(16, 11)}, "another architecture .* head"),
    ({"head.weight": None, "other": torch.zeros(11, 16)}, "another architecture"),
]


def changed(content: dict, changes: dict) -> dict:
    """A checkpoint with other metadata, or other weights."""
    part = "state_dict" if {"head.weight"} & changes.keys() else "gpt"
    old = content[part]
    new = {key: old[key] | new if isinstance(new, dict) else new for key, new in changes.items()}
    return content | {part: {key: value for key, value in (old | new).items() if value is not None}}


@pytest.mark.parametrize(("damage", "message"), [*HEADERS, *CONTENTS])
def test_what_makes_no_model_is_one_line(path, damage, message):
    content = make_content() | {"global_step": 1}
    write(path, changed(content, damage) if isinstance(damage, dict) else content)
    if isinstance(damage, tuple):
        edit_header(path, *damage)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 500


def test_loading_takes_no_more_memory_than_the_file(tmp_path):
    """What a process needs for a file whose sizes ask for gigabytes, and then for one of 50 MB."""
    honest, hostile = tmp_path / "honest.safetensors", tmp_path / "hostile.safetensors"
    write(honest, make_content(n_embd=512, n_head=1, n_layer=4))
    write(hostile, changed(make_content(), {"model": {"n_embd": 30_000}}))
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


# What version 0.2 left of a run (format 4, pickled) becomes what this version would have written
# Of a run whose loss gets worse
SETTINGS = "callbacks=early_stopping callbacks.early_stopping.patience=4 optimizer.lr=10 trainer.max_steps=4"


def make_former(path: Path) -> None:
    """Put what version 0.2 would have written in place of a checkpoint."""
    content = read(path)
    content["state_dict"] = {f"model.{name}": weight for name, weight in content["state_dict"].items()}
    config = content["gpt"]["config"]
    for node in [*config["callbacks"].values(), *config["logger"].values()]:  # they were chosen by name
        node.pop("_target_")
        node.pop("save_dir", None)
    step = content["gpt"].pop("step")
    content |= {"global_step": step, "epoch": 0, "loops": {}, "lr_schedulers": [{"last_epoch": step}]}
    if state := content.get("callbacks", {}).get("early_stopping"):
        former = {"lowest": state["best_score"].item(), "validations": state["wait_count"]}
        content["callbacks"]["early_stopping"] = former
    torch.save(content | {"gpt": content["gpt"] | {"format": 4}}, path.with_suffix(".ckpt"))
    path.unlink()
    (path.parents[1] / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_converted_run_continues_as_if_it_had_always_been_one_of_this_version(succeed, call):
    succeed(*SETTINGS.split(), "trainer.val_check_interval=1", "hydra.run.dir=kept")
    shutil.copytree("kept", "run")
    names = ["checkpoints/best.safetensors", "checkpoints/last.safetensors"]
    for name in names:
        make_former(Path("run", name))

    code, out, _ = call("run", main=convert_checkpoint.main, name="convert_checkpoint.py")
    assert (code, out.split()) == (0, [f"run/{name}" for name in [*names, "config.yaml"]])
    assert same(*(read_last(run, "best")["state_dict"] for run in ("kept", "run")))
    for run in ("kept", "run"):
        succeed(f"resume={run}", "trainer.max_steps=8")
    assert_same_run("run", "kept")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "damaged.ckpt").write_bytes(b"PK\3\4")
    torch.save({"gpt": {"format": 3}}, tmp_path / "older.ckpt")
    torch.save({"gpt": pytest.approx}, tmp_path / "code.ckpt")
    for name, reason in {"damaged": "not one of", "older": "is 3, not 4", "code": "not one of"}.items():
        with pytest.raises(UserError, match=reason):
            convert_checkpoint.convert(tmp_path / f"{name}.ckpt")
    with pytest.raises(UserError, match="no run of the former format"):
        convert_checkpoint.convert_run(tmp_path)
