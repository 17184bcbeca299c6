import io
import multiprocessing
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt import data
from gpt.config import DataConfig
from gpt.data import AllWindows, ShuffledWindows, TextData
from gpt.errors import UserError
from gpt.sources import find_files
from gpt.text import Text, tiny_shakespeare
from gpt.tokenizer import KINDS, ByteTokenizer, CharTokenizer, Tokenizer

IDS = torch.arange(1000)


def windows(**changes) -> ShuffledWindows:
    return ShuffledWindows(**(dict(ids=IDS, context_length=16, batch_size=6, seed=3, length=20) | changes))


def test_batch_depends_on_seed_and_number_alone_and_targets_are_the_next_inputs():
    whole, late = list(windows()), list(windows(start=13))
    assert len(whole) == len(windows()) == 20
    assert all(torch.equal(targets, inputs + 1) for inputs, targets in whole)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[13:], late, strict=True))
    assert not torch.equal(whole[0][0], whole[1][0])
    assert not torch.equal(whole[0][0], windows(seed=4).batch(0)[0])


@pytest.mark.parametrize("length", [17, 20, 40, 1000])  # one window, windows that overlap, a few, and many
def test_an_epoch_reads_every_window_once(length):
    batches = windows(ids=torch.arange(length), batch_size=3)
    per_epoch = max(1, (length - 16) // 16)
    starts = [start for k in range(2 * per_epoch) for start in batches.batch(k)[0][:, 0].tolist()]
    epochs = [starts[first : first + per_epoch] for first in range(0, 6 * per_epoch, per_epoch)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(min(epoch), min(epoch) + 16 * per_epoch, 16))
        assert max(epoch) + 16 < length
    if length == 1000:
        assert len({min(epoch) for epoch in epochs}) > 1  # cut elsewhere
        orders = {tuple(start - min(epoch) for start in epoch) for epoch in epochs}
        assert len(orders) == len(epochs)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batch_of_a_single_process(world_size):
    alone = windows().batch(5)[0]
    shares = [windows(share=(rank, world_size)).batch(5)[0] for rank in range(world_size)]
    assert all(len(share) == 6 // world_size for share in shares)
    assert sorted(torch.cat(shares)[:, 0].tolist()) == sorted(alone[:, 0].tolist())


def test_every_window_can_be_drawn():
    starts = {int(i) for inputs, _ in windows(ids=torch.arange(20), length=200) for i in inputs[:, 0]}
    assert starts == {0, 1, 2, 3}  # the last window ends with the text


def test_validation_covers_each_position_once_and_batches_are_shared_whole():
    alone = list(AllWindows(IDS, 16, 7))
    assert all(torch.equal(targets, inputs + 1) for inputs, targets in alone)
    assert torch.cat([targets for _, targets in alone]).flatten().tolist() == list(range(1, 62 * 16 + 1))
    shares = [list(AllWindows(IDS, 16, 7, (rank, 2))) for rank in range(2)]
    assert sum(map(len, shares)) == len(alone)
    for k, batch in enumerate(alone):
        assert all(torch.equal(a, b) for a, b in zip(batch, shares[k % 2][k // 2], strict=True))
    # With fewer batches than processes each has all
    assert len(list(AllWindows(IDS, 16, 100, (1, 2)))) == 1


def test_tiny_shakespeare_is_split_as_everywhere():
    shakespeare = TextData(DataConfig(folder="none"), context_length=256, seed=0)
    assert (len(shakespeare.train_ids), len(shakespeare.val_ids)) == (1_003_854, 111_540)
    assert shakespeare.description == "1,003,854 characters for training"
    assert (len(shakespeare.tokenizer), shakespeare.characters_per_id) == (65, 1)
    assert sum(len(inputs) for inputs, _ in shakespeare.val_dataloader()) == 435
    assert shakespeare.tokenizer.decode(shakespeare.train_ids[:40]) == tiny_shakespeare(Path("none"))[:40]
    shakespeare.trainer = SimpleNamespace(global_rank=1, world_size=2)
    assert len(shakespeare.val_dataloader()) == 7  # of 14


def load(folder: Path, text: str | bytes, kind: str = "char", tokenizer: Tokenizer | None = None) -> TextData:
    """The data of a text, which is written into a file."""
    (folder / "text.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    place = dict(path=str(folder / "text.txt"), folder=str(folder / "kept"))
    config = DataConfig(**place, val_fraction=0.2, tokenizer=kind, bpe_vocab_size=280)
    return TextData(config, context_length=16, seed=0, tokenizer=tokenizer)


SHORT = {
    "": "0 characters; give",
    "a" * 900: "only the character 'a', nothing to predict",
    "ab" * 20: "its validation split has 8 characters, fewer than the 17 of one window; give",
    "ab" * 8: "its training split has 12 characters, fewer than the 17 of one window; give",
}


@pytest.mark.parametrize(("text", "message"), SHORT.items())
def test_text_that_is_too_short_is_refused(text, message, tmp_path):
    with pytest.raises(UserError, match=f"text.txt: {message}"):
        load(tmp_path, text)


def test_notes_are_printed_once_and_on_one_line(tmp_path, capsys):
    load(tmp_path, "a\x00b\x1b\n" * 100)
    reason = "it contains control characters, which are kept: '\\x00\\x1b'"
    assert capsys.readouterr().err == f"note: data.path = {tmp_path}/text.txt: {reason}\n"
    load(tmp_path, "To\tbe\r\n" * 100)
    assert "text.txt: its lines end in \\r\\n, as on Windows" in capsys.readouterr().err
    load(tmp_path, "To\tbe\n" * 100)
    assert capsys.readouterr().err == ""


def test_tokenizer_decides_how_the_text_is_read(tmp_path):
    given = load(tmp_path, "To bé " * 100, tokenizer=ByteTokenizer())
    assert (given.unit, len(given.train_ids), len(given.val_ids)) == ("bytes", 560, 140)
    assert given.sha256 == load(tmp_path, "To bé " * 100).sha256
    with pytest.raises(UserError, match="'é' not among"):
        load(tmp_path, "To bé " * 100, tokenizer=CharTokenizer("To b"))
    content = bytes(range(256)) * 4  # which is not UTF-8
    whole = load(tmp_path, content, "byte")
    assert bytes(whole.train_ids) + bytes(whole.val_ids) == content


TEXT = "To be, or not to be: π 🙂 that is the question.\n" * 40


@pytest.mark.parametrize("kind", KINDS)
def test_large_text_is_encoded_once_into_files(kind, tmp_path, monkeypatch):
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="extra hf is not installed")
    monkeypatch.setattr("gpt.sources.PART", 100)
    small = load(tmp_path, TEXT, kind)
    assert small.tokenizer.decode([*small.train_ids.tolist(), *small.val_ids.tolist()]) == TEXT
    monkeypatch.setattr(data, "IN_MEMORY", 10)
    for _ in range(2):
        large = load(tmp_path, TEXT, kind)
        assert isinstance(large.train_ids, np.memmap)
        assert large.train_ids.dtype == small.train_ids.dtype == (np.uint16 if kind == "bpe" else np.uint8)
        assert np.array_equal(large.train_ids, small.train_ids)
        assert np.array_equal(large.val_ids, small.val_ids)
        monkeypatch.setattr(data, "encode_parts", lambda *_: pytest.fail("encoded again"))
    assert find_files(str(tmp_path)) == [tmp_path / "text.txt"]  # the ids are no text


@pytest.mark.parametrize("broken", [False, True])
def test_encoding_a_large_text_shows_progress_on_a_terminal_alone(broken, tmp_path, monkeypatch, capsys):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(data, "IN_MEMORY", len(TEXT))
    load(tmp_path, TEXT + "To be\n")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr", terminal)
    load(tmp_path, TEXT)
    assert terminal.getvalue() == ""  # it is short
    if broken:
        ids = CharTokenizer.ids
        monkeypatch.setattr(CharTokenizer, "ids", lambda *args: os.write(-1, b"") if args[1] else ids(*args))
    with pytest.raises(UserError, match="not written") if broken else nullcontext():
        load(tmp_path, TEXT + "or not\n")  # which is not kept yet
    assert "encoding the text 0%" in terminal.getvalue()
    *_, erased, rest = terminal.getvalue().split("\r")
    assert (erased.strip(), rest) == ("", "")


def encode_when_both_are_ready(folder: Path, ready, results) -> None:
    """What each of two processes does. The first result says whether it was the one that encoded."""
    encoded, encode_parts, data.IN_MEMORY = [], data.encode_parts, 10
    data.encode_parts = lambda *arguments: encoded.append(True) or encode_parts(*arguments)
    text = Text(DataConfig(path=str(folder / "text.txt"), val_fraction=1 / 7))
    tokenizer = CharTokenizer.fit(text)
    ready.wait()
    train, val = data.encode(text, tokenizer, folder / "kept")
    results.put((bool(encoded), len(train), len(val), int(val.sum())))


@pytest.mark.filterwarnings("ignore:.*use of fork")
def test_two_processes_encode_a_text_once(tmp_path):
    (tmp_path / "text.txt").write_text("To be, or not to be.\n" * 50_000)
    context = multiprocessing.get_context("fork")  # others would import everything again
    arguments = tmp_path, context.Barrier(2), context.Queue()
    for _ in range(2):
        context.Process(target=encode_when_both_are_ready, args=arguments, daemon=True).start()
    (other, *lengths, total), writer = sorted(arguments[-1].get(timeout=100) for _ in range(2))
    assert (other, lengths, writer) == (False, [900_000, 150_000], (True, *lengths, total))


def test_what_a_killed_process_left_is_removed_and_a_folder_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "IN_MEMORY", 10)
    load(tmp_path, TEXT)
    (place,) = (tmp_path / "kept" / ".ids").iterdir()
    (place / ".val.ids.tmp-1").touch()
    (place / "val.ids").unlink()  # it was killed between the two
    load(tmp_path, TEXT)
    assert {path.name for path in place.iterdir()} - {"lock"} == {"train.ids", "val.ids"}
    shutil.rmtree(tmp_path / "kept")
    (tmp_path / "kept").touch()
    kept = r"^data\.folder = .*kept: the text's ids cannot be kept there \(.+\);"
    with pytest.raises(UserError, match=kept):
        load(tmp_path, TEXT)
