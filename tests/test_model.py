import math

import pytest
import torch
import torch.nn.functional as F

from conftest import ARCHITECTURES, make_config, make_model
from gpt.attention import KVCache, attention
from gpt.config import ModelConfig
from gpt.model import GPT, CausalConv, attention_weights, plain_attention, replace_attention


def random_ids(batch: int, length: int, vocab_size: int = 11) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def test_no_position_sees_a_later_one(arch):
    model, ids = make_model(arch).eval(), random_ids(1, 16)
    before = model(ids)
    assert before.shape == (1, 16, 11)
    changed = ids.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 11
    after = model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.equal(before[:, 9:], after[:, 9:])


def test_gradient_reaches_earlier_positions_only(arch):
    model = make_model(arch).eval()
    embedded = []
    model.tokens.register_forward_hook(lambda *args: embedded.append(args[2].retain_grad() or args[2]))
    model(random_ids(1, 16))[0, 7].sum().backward()
    reached = embedded[0].grad[0].abs().sum(-1) > 0
    assert reached.tolist() == [True] * 8 + [False] * 8


def test_every_residual_branch_has_dropout():
    """With nearly everything dropped, a block returns its input: neither branch goes round its dropout."""
    model = make_model(dropout=0.996).train()
    x = torch.randn(4, 16, 16)
    changed = (model.blocks[0](x, model.rotary, None) - x).abs() > 0
    assert changed.float().mean() < 0.05


@pytest.mark.parametrize("also", [True, False])
def test_attention_weights_have_dropout_only_if_asked(also):
    attention = make_model(dropout=0.5, attention_dropout=also).train().blocks[0].attn
    x, rotary = torch.randn(4, 16, 16), make_model().rotary
    assert torch.equal(attention(x, rotary, None), attention(x, rotary, None)) is not also


def test_convolution_adds_a_mixture_of_earlier_positions():
    conv, x = CausalConv(size=3, width=2), torch.randn(4, 5, 3)
    torch.testing.assert_close(conv(x, None), x)  # it starts at zero
    torch.nn.init.normal_(conv.weight)
    two, one = conv.weight  # (1, C) each, for two positions back and for one
    y = conv(x, None)
    torch.testing.assert_close(y[:, 0], x[:, 0])
    torch.testing.assert_close(y[:, 1], x[:, 1] + one * x[:, 0])
    torch.testing.assert_close(y[:, 2:], x[:, 2:] + one * x[:, 1:-1] + two * x[:, :-2])


@pytest.mark.parametrize("sizes", [(5, 5, 160), (6, 6, 384)])
def test_initial_loss_is_that_of_a_uniform_guess(arch, sizes):
    n_layer, n_head, n_embd = sizes
    torch.manual_seed(0)
    size = dict(n_embd=n_embd, n_head=n_head, n_layer=n_layer)
    model = GPT(make_config(arch, vocab_size=65, context_length=64, **size))
    ids = random_ids(96, 65, 65)
    loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - math.log(65)) < 0.1


def test_projections_on_residual_branches_start_smaller(arch):
    model = make_model(arch, n_embd=128, n_head=2, n_layer=8)
    for block in model.blocks:
        for projection in (block.attn.proj, block.mlp.proj):
            assert abs(projection.weight.std().item() / (0.02 / 4) - 1) < 0.1
        assert abs(block.mlp.fc.weight.std().item() / 0.02 - 1) < 0.1


CHANGES = [{}, {"tied_head": True}, {"bias": True}, {"qk_norm": True, "norm": "layernorm"}]


@pytest.mark.parametrize("changes", CHANGES)
def test_parameter_count_equals_the_size_of_the_model(arch, changes):
    config = make_config(arch, **changes)
    assert config.parameter_count() == sum(p.numel() for p in GPT(config).parameters())


def test_parameter_count_of_the_gpt1_paper():
    paper = make_config("gpt1", vocab_size=40_478, context_length=512, n_layer=12, n_head=12, n_embd=768)
    # 31,087,104 for tokens, 393,216 for positions, and 12 blocks of 7,087,872
    assert paper.parameter_count() == 116_534_784
    with torch.device("meta"):
        assert sum(p.numel() for p in GPT(paper).parameters()) == 116_534_784


def test_one_batch_can_be_memorised(arch):
    model, ids = make_model(arch), random_ids(4, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


@torch.no_grad()
def test_logits_with_a_cache_equal_those_without(arch):
    model, ids = make_model(arch).eval(), random_ids(2, 16)
    whole, cache = model(ids), KVCache(16)
    pieces = torch.cat([model(part, cache) for part in ids.split([5, 1, 1, 4, 5], dim=1)], dim=1)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=1e-5)
    assert cache.length == 16


def test_more_positions_than_context_are_refused(arch):
    model = make_model(arch)
    with pytest.raises(ValueError, match="17 positions are more than context_length = 16"):
        model(random_ids(1, 17))


def test_model_is_not_made_before_the_vocabulary_is_known():
    config = make_config(vocab_size=None)
    for use in (GPT, ModelConfig.parameter_count, ModelConfig.flops_per_token):
        with pytest.raises(ValueError, match="vocab_size = None: not known before the text is read"):
            use(config)


def test_attention_weights_are_those_that_the_model_uses(arch):
    model, ids = make_model(arch, dropout=0.5).train(), random_ids(2, 16)
    weights = attention_weights(model, ids)
    assert weights.shape == (2, 2, 2, 16, 16)  # (n_layer, B, H, T, T)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 2, 16))
    assert (weights.triu(1) == 0).all()
    assert model.training
    seen = []

    def attend(q, k, v, dropout):
        seen.append((q, k))
        mixed, _ = attention(q, k, v, dropout)
        return mixed

    with replace_attention(model.eval(), attend):
        model(ids)
    for (q, k), layer in zip(seen, weights, strict=True):
        scores = q @ k.transpose(-2, -1) / math.sqrt(8)
        visible = scores.masked_fill(torch.ones(16, 16).triu(1) == 1, float("-inf"))
        torch.testing.assert_close(layer, visible.softmax(-1))


def test_looking_at_attention_leaves_the_model_as_it_was(arch):
    model, ids = make_model(arch).eval(), random_ids(2, 16)
    before = model(ids)
    attention_weights(model, ids)
    with plain_attention(model):
        torch.testing.assert_close(model(ids), before)
    with pytest.raises(KeyError), plain_attention(model):
        raise KeyError
    assert torch.equal(model(ids), before)


def test_architectures_differ_where_the_table_says():
    norms = {arch: type(make_model(arch).norm).__name__ for arch in ARCHITECTURES}
    assert norms == {"gpt1": "Identity", "gpt2": "LayerNorm", "modern": "LayerNorm", "rmsnorm": "RMSNorm"}
    found = [("gpt1", 1, "Identity"), ("gpt2", 1, "Identity"), ("modern", 0, "LayerNorm")]
    for arch, learned, qk_norm in found:
        model = make_model(arch)
        assert hasattr(model, "positions") == learned
        assert type(model.blocks[0].attn.qk_norm).__name__ == qk_norm
    block, x = make_model("gpt1").blocks[0], torch.randn(1, 4, 16)
    means = block(x, None, None).mean(-1)  # with post-norm, a block ends in a norm
    torch.testing.assert_close(means, torch.zeros(1, 4), atol=1e-5, rtol=0)
