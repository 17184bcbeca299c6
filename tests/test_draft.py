"""Guesses by counting change no text, whatever is guessed and wherever a text is left."""

import numpy as np
import pytest
import torch

from conftest import make_model
from gpt.attention import KVCache
from gpt.checkpoint import load, read, write
from gpt.draft import CachedModel, Drafter, count, longest_context
from gpt.ensemble import Ensemble
from gpt.errors import UserError
from gpt.generate import generate, generator_of_text
from gpt.model import GPT

PROMPT = torch.tensor([[1, 2, 3]])


def make_drafting(arch: str = "modern", **changes) -> GPT:
    """A model in float64 that expects some tokens more than others, with a table of its own text."""
    model = make_model(arch, **changes).double().eval()
    model.head.weight.data.mul_(40)
    text = torch.cat(list(generate(model, PROMPT, 600, torch.Generator().manual_seed(9))))
    model.draft = Drafter(count(text.numpy(), 11), 11)
    return model


def written(model, seed: int, length: int = 50, **settings) -> tuple[list[int], int]:
    """A text, and in how many passes the model wrote it."""
    passes, cached = [], CachedModel(model, length)
    head = (model.members[0] if isinstance(model, Ensemble) else model).head
    handle = head.register_forward_hook(lambda *_: passes.append(1))
    ids = [int(id) for id in generate(cached, PROMPT, length, generator_of_text(seed, 0), **settings)]
    handle.remove()
    return ids, len(passes)


SETTINGS = [{}, {"temperature": 0.5, "top_k": 5, "top_p": 0.9}, {"min_p": 0.2}, {"temperature": 0}]


@pytest.mark.parametrize("name", ["gpt1", "gpt2", "modern", "ensemble"])
def test_text_of_every_seed_is_the_one_without_guesses(name):
    """Far beyond the context of 16 positions, in fewer passes."""
    model = make_drafting("modern" if name == "ensemble" else name)
    if name == "ensemble":
        model = Ensemble([model, make_model("gpt1", context_length=12).double()]).eval()
    guessed = [written(model, seed, **SETTINGS[seed % 4]) for seed in range(20)]
    model.draft = None
    for seed, (text, passes) in enumerate(guessed):
        assert (text, 50) == written(model, seed, **SETTINGS[seed % 4])
        assert passes < 50


def test_repetition_penalty_leaves_guesses_out():
    """It depends on what has been written, so that they would be wrong."""
    assert written(make_drafting(), 0, repetition_penalty=1.5)[1] == 50


@pytest.mark.parametrize("left_at", [1, 2, 3, 7])
def test_text_that_is_left_and_continued_is_the_same(left_at):
    """Whether guesses had been read, or only their waiting times drawn, when nobody asked for more."""
    model, parts, random = make_drafting(), [], generator_of_text(3, 0)
    cached, ids = CachedModel(model), PROMPT
    while len(parts) < 50:
        stream = generate(cached, ids, 50 - len(parts), random)
        parts += [int(id) for _, id in zip(range(left_at), stream, strict=False)]
        stream.close()
        ids = torch.tensor([[parts[-1]]])
    assert parts[:50] == written(model, 3)[0]


def test_tokens_have_the_probabilities_of_the_softmax():
    """By the chi-square of 20,000 characters, each of which was drawn from a distribution of its own."""
    model = make_drafting().float()
    cached, found, expected, covariance = CachedModel(model), *torch.zeros(2, 11), torch.zeros(11, 11)
    for id in generate(cached, PROMPT, 20_000, generator_of_text(5, 0)):
        p = cached.logits[0].softmax(dim=-1)
        found[id] += 1
        expected += p
        covariance += p.diag() - torch.outer(p, p)
    difference = (found - expected)[1:].double()  # the first follows from the others
    chi_square = difference @ torch.linalg.solve(covariance[1:, 1:].double(), difference)
    assert torch.special.gammaincc(torch.tensor(5.0).double(), chi_square / 2) > 1e-4


@pytest.mark.parametrize("back", [1, 2, 3, 7])
@torch.no_grad()
def test_cache_forgets_any_number_of_positions(arch, back):
    """Keys, values and what convolutions have read."""
    model, cache = make_model(arch).double().eval(), KVCache(16)
    ids = torch.randint(11, (2, 16), generator=torch.Generator().manual_seed(2))
    model(ids[:, :5], cache)
    model(10 - ids[:, 5 : 5 + back], cache)
    cache.length = 5
    torch.testing.assert_close(model(ids[:, 5:], cache), model(ids)[:, 5:])


def test_table_has_the_most_frequent_successors_of_each_context():
    table = count(np.array([0, 1, 0, 1, 0, 2, 0], dtype=np.uint8), vocab_size=3)
    # 0 is followed by 1, 1, 2; 1 by 0, 0; (1, 0) by 1, 2; and so on. What occurs once is left out
    keys = [1, 2, 2 + 1 * 4, 1 + 2 * 4, 2 + 1 * 4 + 2 * 16, 1 + 2 * 4 + 1 * 16]
    rows = zip(*(table[name].tolist() for name in ("contexts", "successors", "probabilities")), strict=True)
    assert {key: (nexts[:2], shares[:2]) for key, nexts, shares in rows} == {
        1: ([1, 2], [170, 85]),
        2: ([0, 0], [255, 0]),
        2 * 4 + 1: ([1, 2], [128, 128]),
        4 + 2: ([0, 0], [255, 0]),
        16 + 2 * 4 + 1: ([1, 2], [128, 128]),
    }, keys
    assert [longest_context(size) for size in (65, 256, 8192, 2**16)] == [5, 5, 3, 2]
    assert not len(count(np.arange(5), 5)["contexts"])


def test_table_is_counted_in_training_and_read_with_the_weights(trained, tmp_path):
    assert len(load(trained)[0].draft.rows) > 10
    content = read(trained / "checkpoints/best.safetensors")
    damaged = dict(content["draft"]) | {"successors": content["draft"]["successors"] + 200}
    for table in (damaged, {}, {"contexts": torch.zeros(1)}, "table"):
        write(tmp_path / "damaged.safetensors", content | {"draft": table})
        with pytest.raises(UserError, match="its metadata makes no model"):
            load(tmp_path / "damaged.safetensors")
    del content["draft"]
    write(tmp_path / "before.safetensors", content)
    assert load(tmp_path / "before.safetensors")[0].draft is None  # of a version that did not count
