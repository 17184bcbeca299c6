import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from gpt import encode
from gpt.corpus import find_files, tiny_shakespeare
from gpt.data import AllWindows, CharData, DataConfig, RandomWindows

IDS = torch.arange(1000)


def windows(**changes) -> RandomWindows:
    return RandomWindows(**(dict(ids=IDS, context_length=16, batch_size=6, seed=3, length=20) | changes))


def test_targets_are_inputs_one_later():
    for batches in (windows(), AllWindows(IDS, 16, 4)):
        for inputs, targets in batches:
            assert inputs.shape == targets.shape
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
            assert torch.equal(targets, inputs + 1)


def test_a_batch_depends_on_seed_and_number_alone():
    whole = list(windows())
    assert len(whole) == len(windows()) == 20
    late = list(windows(start=13))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole[13:], late, strict=True))
    assert not torch.equal(whole[0][0], whole[1][0])
    assert not torch.equal(whole[0][0], windows(seed=4).batch(0)[0])


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batch_of_one(world):
    alone = windows().batch(5)[0]
    shares = [windows(rank=rank, world=world).batch(5)[0] for rank in range(world)]
    assert all(len(share) == 6 // world for share in shares)
    together = torch.cat(shares)
    assert sorted(together[:, 0].tolist()) == sorted(alone[:, 0].tolist())


def test_every_window_can_be_drawn():
    seen = {int(i) for inputs, _ in windows(ids=torch.arange(20), length=200) for i in inputs[:, 0]}
    assert seen == {0, 1, 2, 3}  # the last one ends with the text


def test_all_windows_cover_each_position_once():
    targets = torch.cat([targets for _, targets in AllWindows(IDS, 16, 7)])
    assert targets.flatten().tolist() == list(range(1, 62 * 16 + 1))
    shares = [torch.cat([x for x, _ in AllWindows(IDS, 16, 7, rank, 2)]) for rank in range(2)]
    assert sorted(torch.cat(shares).flatten().tolist()) == list(range(62 * 16))


def test_tiny_shakespeare_is_split_as_everywhere():
    data = CharData(DataConfig(path=None, folder="none", val_fraction=0.1, batch_size=4), context_length=256, seed=0)
    assert (len(data.train_ids), len(data.val_ids), len(data.tokenizer)) == (1_003_854, 111_540, 65)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=None)
    assert sum(len(inputs) for inputs, _ in data.val_dataloader()) == 435
    assert data.tokenizer.decode(data.train_ids[:40]) == tiny_shakespeare(Path("none"))[:40]


def test_validation_batches_are_shared_whole():
    alone = list(AllWindows(IDS, 16, 7))
    shares = [list(AllWindows(IDS, 16, 7, rank, 2)) for rank in range(2)]
    for k, batch in enumerate(alone):
        assert all(torch.equal(a, b) for a, b in zip(batch, shares[k % 2][k // 2], strict=True))
    assert len(list(AllWindows(IDS, 16, 100, rank=1, world=2))) == 1  # fewer batches than processes: all do all


def corpus(tmp_path: Path, tokenizer: str, **changes) -> CharData:
    text = "To be, or not to be: π 🙂 that is the question.\n" * 40
    (tmp_path / "text.txt").write_text(text)
    settings = dict(path=str(tmp_path / "text.txt"), folder=str(tmp_path / "kept"), val_fraction=0.2, batch_size=2)
    return CharData(DataConfig(**settings, tokenizer=tokenizer, bpe_vocab_size=280, **changes), context_length=16, seed=0)


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_a_large_text_is_encoded_once_into_a_file(kind, tmp_path, monkeypatch):
    if kind == "bpe":
        pytest.importorskip("tokenizers", reason="extra hf is not installed")
    small = corpus(tmp_path, kind)
    monkeypatch.setattr(encode, "IN_MEMORY", 10)
    large = corpus(tmp_path, kind)
    assert isinstance(large.train_ids, np.memmap)
    assert large.train_ids.dtype == (np.uint16 if kind == "bpe" else np.uint8)
    for part in ("train_ids", "val_ids"):
        assert np.array_equal(getattr(large, part), getattr(small, part))
    whole = (tmp_path / "text.txt").read_text()
    assert small.tokenizer.decode([*small.train_ids.tolist(), *small.val_ids.tolist()]) == whole
    kept = sorted((tmp_path / "kept" / ".ids").iterdir())
    assert [path.suffix for path in kept] == [".ids", ".json", ".lock"]
    assert find_files(str(tmp_path / "kept" / "..")) == [tmp_path / "kept" / ".." / "text.txt"]  # they are no text
    before = [path.stat().st_mtime_ns for path in kept[:2]]
    corpus(tmp_path, kind)
    assert [path.stat().st_mtime_ns for path in kept[:2]] == before  # not made again
    kept[0].write_bytes(kept[0].read_bytes()[:-1] + b"x")
    again = corpus(tmp_path, kind)
    assert np.array_equal(again.val_ids, small.val_ids)  # made again
    kept[1].write_text("{")
    assert np.array_equal(corpus(tmp_path, kind).val_ids, small.val_ids)


def test_two_processes_may_encode_at_once(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be.\n" * 50_000)
    code = (
        "import sys, time; from pathlib import Path; import gpt.encode as e; from gpt.corpus import Text\n"
        "from gpt.tokenizer import CharTokenizer; e.IN_MEMORY = 10\n"
        "text = Text([Path(sys.argv[1])]); tokenizer = CharTokenizer.from_parts(text); print('ready', flush=True)\n"
        "while not Path(sys.argv[3]).exists(): time.sleep(0.001)\n"
        "train, val = e.encode(text, tokenizer, 900_000, Path(sys.argv[2])); print(len(train), len(val), int(val.sum()))"
    )
    command = [sys.executable, "-c", code, str(text), str(tmp_path / "kept"), str(tmp_path / "go")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    (tmp_path / "go").touch()  # all at once
    said = [process.communicate(timeout=100)[0] for process in processes]
    assert said[0].startswith("900000 150000 ")
    assert said == said[:1] * 3
    assert len(list((tmp_path / "kept" / ".ids").iterdir())) == 3  # ids, about them, and the lock
