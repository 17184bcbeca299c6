import math

import pytest
import torch

import gpt.attention
from conftest import make_model
from gpt.attention import (
    Dropout,
    KVCache,
    apply_rotary,
    attention,
    blockwise_attention,
    fastest_attention,
    rotary_table,
)

NO_DROPOUT = Dropout(0.0)


def random_qkv(new: int, held: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q (2, 2, new, 8), k and v (2, 2, held + new, 8)."""
    generator = torch.Generator().manual_seed(0)
    k, v = torch.randn(2, 2, 2, held + new, 8, generator=generator)
    return torch.randn(2, 2, new, 8, generator=generator), k, v


def test_attention_equals_a_loop_over_heads_and_positions():
    q, k, v = random_qkv(5)
    mixed, weights = attention(q, k, v, NO_DROPOUT)
    for b in range(2):
        for h in range(2):
            for t in range(5):
                scores = torch.stack([q[b, h, t] @ k[b, h, s] / math.sqrt(8) for s in range(t + 1)])
                expected = scores.softmax(0)
                torch.testing.assert_close(weights[b, h, t, : t + 1], expected)
                assert (weights[b, h, t, t + 1 :] == 0).all()
                torch.testing.assert_close(mixed[b, h, t], expected @ v[b, h, : t + 1])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_training_in_bfloat16_or_with_dropout_goes_by_blocks(arch, precision, dropout, monkeypatch):
    model = make_model(arch, dropout=dropout, attention_dropout=True).train()
    layers = []
    monkeypatch.setattr(gpt.attention, "blockwise_attention", lambda q, k, v, _: layers.append(1) or v)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
        model(torch.zeros(1, 4, dtype=torch.int64))
    assert len(layers) == (2 if dropout or precision == "bf16-mixed" else 0)


@pytest.mark.parametrize(("new", "held"), [(7, 0), (1, 6), (3, 4), (10, 0), (9, 5)])
def test_faster_attention_equals_the_formula(new, held):
    q, k, v = random_qkv(new, held)
    expected = attention(q, k, v, NO_DROPOUT)[0]
    torch.testing.assert_close(fastest_attention(q, k, v, NO_DROPOUT), expected)
    torch.testing.assert_close(blockwise_attention(q, k, v, NO_DROPOUT, block_size=4), expected)


def test_fastest_attention_with_dropout_has_the_same_mean_as_without():
    q, k, v = random_qkv(6)
    dropout = Dropout(0.25)
    torch.manual_seed(0)
    draws = torch.stack([fastest_attention(q, k, v, dropout) for _ in range(3000)])
    assert draws.std(0).max() > 0.05  # it does drop
    torch.testing.assert_close(draws.mean(0), fastest_attention(q, k, v, dropout.eval()), atol=0.08, rtol=0)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_dropout_has_the_right_rate_mean_and_gradient(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 997, requires_grad=True)
    y = Dropout(p)(x)
    rate = round(p * 256) / 256
    assert abs((y == 0).float().mean().item() - rate) < 2e-3
    assert abs(y.mean().item() - 1) < 3e-3
    y.sum().backward()
    assert torch.equal(x.grad, y)  # kept elements have their gradient scaled as the value was


def test_dropout_masks_are_independent():
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(8, 100_000)) == 0).float()
    correlations = torch.corrcoef(dropped)
    assert (correlations - torch.eye(8)).abs().max() < 0.02
    neighbours = torch.stack((dropped[0, :-1], dropped[0, 1:]))  # bytes of the same 64-bit number, mostly
    assert torch.corrcoef(neighbours)[0, 1].abs() < 0.02


@pytest.mark.parametrize("p", [1e-4, 0.999])
def test_dropout_near_0_and_1_neither_keeps_nor_drops_everything(p):
    torch.manual_seed(0)
    y = Dropout(p)(torch.ones(10_000))
    assert y.isfinite().all()
    assert 0 < (y == 0).sum() < 10_000


def test_rotary_scores_depend_on_the_distance_alone():
    cos, sin = rotary_table(32, 8)
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = apply_rotary(q.expand(32, 8), cos, sin), apply_rotary(k.expand(32, 8), cos, sin)
    scores = turned_q @ turned_k.T
    for distance in (0, 1, 5):
        found = scores.diagonal(-distance)
        torch.testing.assert_close(found, found[:1].expand_as(found), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(32))


def test_cache_returns_all_keys_and_values_without_copying_them():
    layer, cache = torch.nn.Identity(), KVCache(capacity=5)
    _, k, v = random_qkv(5)
    cache.append(layer, k[:, :, :2], v[:, :, :2])
    cache.length = 2
    keys, values = cache.append(layer, k[:, :, 2:], v[:, :, 2:])
    assert torch.equal(keys, k)
    assert torch.equal(values, v)
    assert keys.data_ptr() == cache.keys_values[layer].data_ptr()
