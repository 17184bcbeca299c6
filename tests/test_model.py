import math

import pytest
import torch
import torch.nn.functional as F

from conftest import ARCHITECTURES, make_config, make_model
from gpt.model import (
    GPT,
    Cache,
    Convolution,
    Dropout,
    SelfAttention,
    attention,
    blockwise_attention,
    parameter_count,
    rotary_table,
    rotate,
)


def random_ids(batch: int, length: int, vocab_size: int = 11) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def test_logits_for_every_position(arch):
    assert make_model(arch)(random_ids(3, 10)).shape == (3, 10, 11)


def test_no_position_sees_a_later_one(arch):
    model, ids = make_model(arch).eval(), random_ids(1, 16)
    before = model(ids)
    changed = ids.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 11
    after = model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])


def test_gradient_reaches_earlier_positions_only(arch):
    model = make_model(arch).eval()
    embedded = []
    model.tokens.register_forward_hook(lambda module, inputs, output: embedded.append(output.retain_grad() or output))
    model(random_ids(1, 16))[0, 7].sum().backward()
    reached = embedded[0].grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [True] * 8 + [False] * 8


def test_attention_equals_a_loop_over_heads_and_positions():
    q, k, v = torch.randn(3, 2, 3, 5, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    mixed, weights = attention(q, k, v, torch.nn.Identity())
    for b in range(2):
        for h in range(3):
            for t in range(5):
                scores = torch.stack([q[b, h, t] @ k[b, h, s] / math.sqrt(8) for s in range(t + 1)])
                expected = scores.softmax(0)
                torch.testing.assert_close(weights[b, h, t, : t + 1], expected)
                assert (weights[b, h, t, t + 1 :] == 0).all()
                torch.testing.assert_close(mixed[b, h, t], expected @ v[b, h, : t + 1])


@pytest.mark.parametrize(("new", "held"), [(7, 0), (1, 6), (3, 4)])
def test_fused_attention_equals_the_reference(new, held):
    layer = SelfAttention(make_config()).eval()
    q = torch.randn(2, 2, new, 8)
    k, v = torch.randn(2, 2, 2, held + new, 8).unbind(0)
    torch.testing.assert_close(layer.mix(q, k, v), attention(q, k, v, torch.nn.Identity())[0])


@pytest.mark.parametrize(("new", "held"), [(10, 0), (9, 5), (3, 0)])
def test_blockwise_attention_equals_the_reference(new, held):
    q, (k, v) = torch.randn(2, 2, new, 8), torch.randn(2, 2, 2, held + new, 8).unbind(0)
    expected = attention(q, k, v, torch.nn.Identity())[0]
    torch.testing.assert_close(blockwise_attention(q, k, v, torch.nn.Identity(), size=4), expected)


def test_training_with_dropout_equals_the_fused_path_on_average():
    layer = SelfAttention(make_config(dropout=0.25))
    q, k, v = torch.randn(3, 1, 2, 6, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    fused = layer.eval().mix(q, k, v)
    layer.train()
    torch.manual_seed(0)
    many = torch.stack([layer.mix(q, k, v) for _ in range(3000)])
    assert many.std(0).max() > 0.05  # it drops
    torch.testing.assert_close(many.mean(0), fused, atol=0.08, rtol=0)


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5])
def test_dropout_rate_mean_and_gradient(p):
    torch.manual_seed(0)
    x = torch.ones(1001, 997, requires_grad=True)
    y = Dropout(p)(x)
    rate = round(p * 256) / 256
    assert abs((y == 0).float().mean().item() - rate) < 2e-3
    assert abs(y.mean().item() - 1) < 3e-3
    y.sum().backward()
    assert torch.equal(x.grad, y)  # where it kept, the gradient is scaled as the value was


def test_dropout_masks_are_independent_and_gone_in_eval():
    torch.manual_seed(0)
    dropped = (Dropout(0.5)(torch.ones(8, 100_000)) == 0).float()
    neighbours = torch.corrcoef(dropped)  # the eight bytes of a draw
    assert (neighbours - torch.eye(8)).abs().max() < 0.02
    assert torch.corrcoef(torch.stack((dropped[0, :-1], dropped[0, 1:])))[0, 1].abs() < 0.02
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x


@pytest.mark.parametrize("p", [1e-4, 0.999])
def test_dropout_at_the_ends_of_its_range(p):
    y = Dropout(p)(torch.ones(10_000))
    assert y.isfinite().all()
    assert 0 < (y == 0).sum() < 10_000


def test_every_residual_branch_has_dropout():
    """With nearly everything dropped, a block passes its input on: no branch gets by."""
    model = make_model(dropout=0.996).train()
    x = torch.randn(4, 16, 16)
    rotary = model.cos, model.sin
    changed = (model.blocks[0](x, rotary, None) - x).abs() > 0
    assert changed.float().mean() < 0.05


def test_convolution_adds_the_positions_before():
    conv, x = Convolution(size=3, width=2), torch.randn(4, 5, 3)
    torch.testing.assert_close(conv(x, None), x)  # as it starts
    torch.nn.init.normal_(conv.weight)
    two, one = conv.weight  # (1, C) each: two positions before, one before
    y = conv(x, None)
    torch.testing.assert_close(y[:, 0], x[:, 0])
    torch.testing.assert_close(y[:, 1], x[:, 1] + one * x[:, 0])
    torch.testing.assert_close(y[:, 2:], x[:, 2:] + one * x[:, 1:-1] + two * x[:, :-2])


def test_rotary_scores_depend_on_distance_alone():
    cos, sin = rotary_table(32, 8)
    q, k = torch.randn(2, 8)
    turned_q, turned_k = rotate(q.expand(32, 8), cos, sin), rotate(k.expand(32, 8), cos, sin)
    scores = turned_q @ turned_k.T
    for distance in (0, 1, 5):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(32))


@pytest.mark.parametrize("sizes", [(5, 5, 160), (6, 6, 384)])
def test_initial_loss_is_that_of_guessing(arch, sizes):
    n_layer, n_head, n_embd = sizes
    torch.manual_seed(0)
    model = GPT(make_config(arch, vocab_size=65, n_embd=n_embd, n_head=n_head, n_layer=n_layer, context_length=64))
    ids = random_ids(96, 65, 65)
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(65)) < 0.1


def test_residual_projections_start_smaller(arch):
    model = make_model(arch, n_embd=128, n_head=2, n_layer=8)
    for block in model.blocks:
        for projection in (block.attn.proj, block.mlp.proj):
            assert abs(projection.weight.std().item() / (0.02 / 4) - 1) < 0.1
        assert abs(block.mlp.fc.weight.std().item() / 0.02 - 1) < 0.1


@pytest.mark.parametrize("changes", [{}, {"tied_head": True}, {"bias": True}, {"qk_norm": True, "norm": "layernorm"}])
def test_parameter_count_is_what_the_model_holds(arch, changes):
    config = make_config(arch, **changes)
    assert parameter_count(config) == sum(p.numel() for p in GPT(config).parameters())


def test_parameter_count_of_the_paper():
    paper = make_config("gpt1", vocab_size=40_478, context_length=512, n_layer=12, n_head=12, n_embd=768)
    assert parameter_count(paper) == 116_534_784  # 31,087,104 tokens, 393,216 positions, 12 blocks of 7,087,872
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(paper).parameters()) == 116_534_784


def test_tied_head_is_one_tensor():
    model = make_model("gpt1")
    assert model.head.weight is model.tokens.weight


def test_one_batch_can_be_learned_by_heart(arch):
    model, ids = make_model(arch), random_ids(4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@torch.no_grad()
def test_cache_gives_the_same_logits(arch):
    model, ids = make_model(arch).eval(), random_ids(2, 16)
    whole, cache = model(ids), Cache(16)
    pieces = torch.cat([model(part, cache) for part in ids.split([5, 1, 1, 4, 5], dim=1)], dim=1)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)
    assert cache.length == 16


def test_more_positions_than_context_are_refused(arch):
    model = make_model(arch)
    with pytest.raises(ValueError, match="17 positions are more than context_length = 16"):
        model(random_ids(1, 17))


def test_bad_sizes_are_refused_by_name():
    for field, value, hint in [
        ("n_head", 3, "n_head = 3: n_embd = 16 is not divisible"),
        ("n_layer", 0, "n_layer = 0: must be at least 1"),
        ("dropout", 1.0, "dropout = 1.0"),
        ("norm", "batchnorm", "choose one of layernorm, rmsnorm"),
        ("n_head", 16, "positions = rotary"),
        ("conv_width", -1, "conv_width = -1: must not be negative"),
    ]:
        with pytest.raises(ValueError, match=hint.replace("(", r"\(")):
            make_config(**{field: value})


def test_architectures_differ_where_the_table_says():
    norms = {arch: type(make_model(arch).norm).__name__ for arch in ARCHITECTURES}
    assert norms == {"gpt1": "Identity", "gpt2": "LayerNorm", "modern": "LayerNorm", "rmsnorm": "RMSNorm"}
    assert {arch: hasattr(make_model(arch), "positions") for arch in ("gpt1", "gpt2", "modern")} == {
        "gpt1": True,
        "gpt2": True,
        "modern": False,
    }
    assert {type(make_model(arch).blocks[0].attn.qk_norm).__name__ for arch in ("gpt1", "gpt2")} == {"Identity"}
    assert type(make_model("modern").blocks[0].attn.qk_norm).__name__ == "LayerNorm"
    block, x = make_model("gpt1").blocks[0], torch.randn(1, 4, 16)
    torch.testing.assert_close(block(x, None, None).mean(-1), torch.zeros(1, 4), atol=1e-5, rtol=0)  # post: ends in a norm
