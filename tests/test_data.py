import io
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock

from gpt import data
from gpt.corpus import find_files, tiny_shakespeare
from gpt.data import AllWindows, CharData, DataConfig, ShuffledWindows
from gpt.settings import UserError, build
from gpt.tokenizer import KINDS, ByteTokenizer, CharTokenizer, Tokenizer

IDS = torch.arange(1000)
VALUES = dict(path=None, folder="none", val_fraction=0.1, batch_size=4, tokenizer="char", bpe_vocab_size=280)


def windows(**changes) -> ShuffledWindows:
    return ShuffledWindows(**(dict(ids=IDS, context_length=16, batch_size=6, seed=3, length=20) | changes))


def test_targets_are_the_inputs_one_position_later():
    for batches in (windows(), AllWindows(IDS, 16, 4)):
        for inputs, targets in batches:
            assert inputs.shape == targets.shape
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
            assert torch.equal(targets, inputs + 1)


def test_batch_depends_on_seed_and_number_alone():
    whole = list(windows())
    assert len(whole) == len(windows()) == 20
    late = list(windows(start=13))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[13:], late, strict=True))
    assert not torch.equal(whole[0][0], whole[1][0])
    assert not torch.equal(whole[0][0], windows(seed=4).batch(0)[0])


@pytest.mark.parametrize("length", [17, 20, 40, 1000])  # one window, windows that overlap, a few, and many
def test_an_epoch_reads_every_window_once(length):
    batches = windows(ids=torch.arange(length), batch_size=3)
    per_epoch = max(1, (length - 16) // 16)
    rows = [row for k in range(2 * per_epoch) for row in batches.batch(k)[0][:, 0].tolist()]  # where each window starts
    epochs = [rows[start : start + per_epoch] for start in range(0, 6 * per_epoch, per_epoch)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(min(epoch), min(epoch) + 16 * per_epoch, 16))
        assert max(epoch) + 16 < length
    if length == 1000:
        assert len({min(epoch) for epoch in epochs}) > 1  # cut elsewhere
        assert len({tuple(row - min(epoch) for row in epoch) for epoch in epochs}) == len(epochs)  # in another order


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batch_of_a_single_process(world_size):
    alone = windows().batch(5)[0]
    shares = [windows(rank=rank, world_size=world_size).batch(5)[0] for rank in range(world_size)]
    assert all(len(share) == 6 // world_size for share in shares)
    together = torch.cat(shares)
    assert sorted(together[:, 0].tolist()) == sorted(alone[:, 0].tolist())


def test_every_window_can_be_drawn():
    starts = {int(i) for inputs, _ in windows(ids=torch.arange(20), length=200) for i in inputs[:, 0]}
    assert starts == {0, 1, 2, 3}  # the last window ends with the text


def test_all_windows_cover_each_position_once():
    targets = torch.cat([targets for _, targets in AllWindows(IDS, 16, 7)])
    assert targets.flatten().tolist() == list(range(1, 62 * 16 + 1))
    shares = [torch.cat([inputs for inputs, _ in AllWindows(IDS, 16, 7, rank, 2)]) for rank in range(2)]
    assert sorted(torch.cat(shares).flatten().tolist()) == list(range(62 * 16))


def test_validation_batches_are_shared_whole():
    alone = list(AllWindows(IDS, 16, 7))
    shares = [list(AllWindows(IDS, 16, 7, rank, 2)) for rank in range(2)]
    for k, batch in enumerate(alone):
        assert all(torch.equal(a, b) for a, b in zip(batch, shares[k % 2][k // 2], strict=True))
    assert len(list(AllWindows(IDS, 16, 100, rank=1, world_size=2))) == 1  # fewer batches than processes: each has all


def test_tiny_shakespeare_is_split_as_everywhere():
    shakespeare = CharData(DataConfig(**VALUES), context_length=256, seed=0)
    assert (len(shakespeare.train_ids), len(shakespeare.val_ids)) == (1_003_854, 111_540)
    assert (len(shakespeare.tokenizer), shakespeare.unit, shakespeare.characters_per_id) == (65, "characters", 1)
    assert sum(len(inputs) for inputs, _ in shakespeare.val_dataloader()) == 435
    assert shakespeare.tokenizer.decode(shakespeare.train_ids[:40]) == tiny_shakespeare(Path("none"))[:40]


def test_validation_is_shared_among_processes_unless_told_otherwise():
    for share, batches in ((True, 7), (False, 14)):
        shakespeare = CharData(DataConfig(**VALUES), context_length=256, seed=0, share_validation=share)
        shakespeare.trainer = SimpleNamespace(global_rank=1, world_size=2)
        assert len(shakespeare.val_dataloader()) == batches


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": ""}, r"data\.path = \(empty\): an empty name.*; set data\.path=my\.txt, or null for Tiny Shakespeare"),
        ({"folder": ""}, r"data\.folder = \(empty\): an empty name.*; set for instance data\.folder=data"),
        ({"path": "a\0b"}, r"data\.path = a\\x00b: holds a NUL character; set"),
        ({"path": "\udcff.txt"}, r"data\.path = \\udcff\.txt: not UTF-8; set"),
        ({"val_fraction": 0.0}, r"data\.val_fraction = 0\.0: leaves a split empty; set"),
        ({"val_fraction": 1}, r"data\.val_fraction = 1\.0: leaves a split empty; set"),
        ({"batch_size": 0}, r"data\.batch_size = 0: must be at least 1; set"),
        ({"tokenizer": "word"}, r"data\.tokenizer = word: unknown; choose one of char, byte, bpe"),
        ({"bpe_vocab_size": 255}, r"data\.bpe_vocab_size = 255: must be from 256 to 65536; set"),
    ],
)
def test_wrong_setting_is_refused(changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        build(DataConfig, VALUES | changes, "data")


def load(tmp_path: Path, text: str | bytes, kind: str = "char", tokenizer: Tokenizer | None = None) -> CharData:
    """The data of a text, which is written into a file."""
    (tmp_path / "text.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    own = dict(path=str(tmp_path / "text.txt"), folder=str(tmp_path / "kept"), val_fraction=0.2, tokenizer=kind)
    return CharData(DataConfig(**(VALUES | own)), context_length=16, seed=0, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 characters; give"),
        ("a" * 900, "only the character 'a', nothing to predict; give"),
        ("ab" * 20, "its validation split has 8 characters, fewer than the 17 of one window; give"),
        ("ab" * 8, "its training split has 12 characters, fewer than the 17 of one window; give"),
    ],
)
def test_text_that_is_too_short_is_refused(text, message, tmp_path):
    with pytest.raises(UserError, match=f"text.txt: {message}"):
        load(tmp_path, text)


def test_notes_are_printed_once_and_on_one_line(tmp_path, capsys):
    load(tmp_path, "a\x00b\x1b\n" * 100)
    note = f"note: data.path = {tmp_path}/text.txt: it contains control characters, which are kept: '\\x00\\x1b'\n"
    assert capsys.readouterr().err == note
    load(tmp_path, "To be\n" * 100)
    assert capsys.readouterr().err == ""


def test_given_tokenizer_decides_how_the_text_is_read(tmp_path):
    given = load(tmp_path, "To bé " * 100, tokenizer=ByteTokenizer())
    assert (given.unit, len(given.train_ids), len(given.val_ids)) == ("bytes", 560, 140)
    assert given.sha256 == load(tmp_path, "To bé " * 100).sha256
    with pytest.raises(UserError, match="'é' not among"):
        load(tmp_path, "To bé " * 100, tokenizer=CharTokenizer("To b"))


def test_any_file_can_be_read_as_bytes(tmp_path):
    content = bytes(range(256)) * 4
    whole = load(tmp_path, content, "byte")
    assert bytes(whole.train_ids) + bytes(whole.val_ids) == content


TEXT = "To be, or not to be: π 🙂 that is the question.\n" * 40


@pytest.mark.parametrize("kind", KINDS)
def test_large_text_is_encoded_once_into_a_file(kind, tmp_path, monkeypatch):
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="extra hf is not installed")
    small = load(tmp_path, TEXT, kind)
    monkeypatch.setattr(data, "IN_MEMORY", 10)
    large = load(tmp_path, TEXT, kind)
    assert isinstance(large.train_ids, np.memmap)
    assert large.train_ids.dtype == (np.uint16 if kind == "bpe" else np.uint8)
    assert small.tokenizer.decode([*small.train_ids.tolist(), *small.val_ids.tolist()]) == TEXT

    def assert_equal(other: CharData) -> None:
        assert np.array_equal(other.train_ids, small.train_ids)
        assert np.array_equal(other.val_ids, small.val_ids)

    assert_equal(large)
    kept = sorted((tmp_path / "kept" / ".ids").iterdir())
    assert [path.suffix for path in kept] == [".ids", ".json", ".lock"]
    assert find_files(str(tmp_path)) == [tmp_path / "text.txt"]  # the ids are no text
    times = [path.stat().st_mtime_ns for path in kept[:2]]
    assert_equal(load(tmp_path, TEXT, kind))
    assert [path.stat().st_mtime_ns for path in kept[:2]] == times  # not written again
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"x")
    assert_equal(load(tmp_path, TEXT, kind))
    for damage in ("{", "[]", "{}", '{"train": "7"}'):
        kept[1].write_text(damage)
        assert_equal(load(tmp_path, TEXT, kind))


@pytest.mark.parametrize("broken", [False, True])
def test_encoding_a_large_text_shows_progress_on_a_terminal_alone(broken, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "IN_MEMORY", 10)
    load(tmp_path, TEXT)
    assert capsys.readouterr().err == ""
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    if broken:
        monkeypatch.setattr(CharTokenizer, "ids", lambda *_: os.write(-1, b""))
    with pytest.raises(UserError, match="cannot be kept") if broken else nullcontext():
        load(tmp_path, TEXT + "To be\n")  # which is not kept yet
    assert "encoding the text 0%" in terminal.getvalue()
    assert terminal.getvalue().split("\r")[-2:] == [" " * len(terminal.getvalue().split("\r")[-2]), ""]  # erased


ENCODE_LARGE_TEXT = """
import sys, time
from pathlib import Path
from gpt import data
from gpt.corpus import Text
from gpt.tokenizer import CharTokenizer

data.IN_MEMORY = 10
text = Text([Path(sys.argv[1])])
tokenizer = CharTokenizer.from_parts(text)
print("ready", flush=True)
while not Path(sys.argv[3]).exists():
    time.sleep(0.001)
train, val = data.encode(text, tokenizer, 900_000, Path(sys.argv[2]))
print(len(train), len(val), int(val.sum()))
"""


def start_encoding(tmp_path: Path, code: str = ENCODE_LARGE_TEXT) -> subprocess.Popen:
    """A process that encodes text.txt into the folder "kept" as soon as there is a file "go"."""
    command = [sys.executable, "-c", code, str(tmp_path / "text.txt"), str(tmp_path / "kept"), str(tmp_path / "go")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_several_processes_may_encode_the_same_text_at_once(tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be.\n" * 50_000)
    processes = [start_encoding(tmp_path) for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    (tmp_path / "go").touch()
    outputs = [process.communicate(timeout=100)[0] for process in processes]
    assert outputs[0].startswith("900000 150000 ")
    assert outputs == outputs[:1] * 3
    assert len(list((tmp_path / "kept" / ".ids").iterdir())) == 3  # the ids, the record of them, and the lock


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("To be, or not to be.\n" * 50_000)
    place = tmp_path / "kept" / ".ids"
    # It stops within the block that writes the file
    code = ENCODE_LARGE_TEXT.replace("print(", "CharTokenizer.ids = lambda *_: time.sleep(100)\nprint(", 1)
    process = start_encoding(tmp_path, code)
    (tmp_path / "go").touch()
    while not list(place.glob(".*.tmp-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    for name in ("own.txt.tmp-1", f".{'f' * 64}.ids.tmp-busy"):
        (place / name).touch()
    monkeypatch.setattr(data, "IN_MEMORY", 10)
    with FileLock(place / f"{'f' * 64}.lock"):  # another process is at work on this one
        load(tmp_path, "another text\n" * 90)
    assert sorted(path.name for path in place.glob("*.tmp-*")) == [f".{'f' * 64}.ids.tmp-busy", "own.txt.tmp-1"]
    load(tmp_path, "another text\n" * 90)
    assert [path.name for path in place.glob("*.tmp-*")] == ["own.txt.tmp-1"]


def test_folder_that_cannot_keep_the_ids_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "IN_MEMORY", 10)
    (tmp_path / "kept").touch()
    with pytest.raises(UserError, match=r"data\.folder = .*kept: the text's ids cannot be kept there \(.*\); make room"):
        load(tmp_path, TEXT)


def test_lock_that_is_a_link_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "IN_MEMORY", 10)
    load(tmp_path, TEXT)
    (lock,) = (tmp_path / "kept" / ".ids").glob("*.lock")
    (tmp_path / "precious").write_text("precious")
    lock.unlink()
    lock.symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="a link"):
        load(tmp_path, TEXT)
    assert (tmp_path / "precious").read_text() == "precious"
