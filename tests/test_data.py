from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpt.corpus import tiny_shakespeare
from gpt.data import AllWindows, CharData, DataConfig, RandomWindows
from gpt.settings import UserError

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
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    assert sum(len(inputs) for inputs, _ in data.val_dataloader()) == 435
    assert data.tokenizer.decode(data.train_ids[:40]) == tiny_shakespeare(Path("none"))[:40]


def test_a_batch_that_processes_cannot_share_is_refused(text):
    data = CharData(DataConfig(path=str(text), folder="", val_fraction=0.1, batch_size=3), context_length=16, seed=0)
    data.trainer = SimpleNamespace(global_rank=0, world_size=2, accumulate_grad_batches=1, max_steps=1, global_step=0)
    with pytest.raises(UserError, match=r"data\.batch_size = 3: not divisible among 2 processes"):
        data.train_dataloader()
