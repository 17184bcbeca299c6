import pytest
import torch

from conftest import make_model
from gpt.attention import KVCache
from gpt.decode import Decoder
from gpt.model import CHOICES, GPT


def perturbed(arch: str, **changes) -> GPT:
    """A model in eval mode whose norms and biases also differ from what they start as."""
    model = make_model(arch, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@pytest.mark.parametrize("activation", CHOICES["activation"])
@pytest.mark.parametrize("norm", CHOICES["norm"])
@torch.no_grad()
def test_decoder_computes_what_the_model_does(arch, norm, activation):
    model = perturbed(arch, norm=norm, activation=activation)
    ids = torch.randint(11, (3, 16), generator=torch.Generator().manual_seed(2))
    caches = KVCache(16), KVCache(16)
    for cache in caches:
        model(ids[:, :5], cache)
    decoder = Decoder(model, caches[1])
    for t in range(5, 15):
        torch.testing.assert_close(decoder(ids[:, t : t + 1]), model(ids[:, t : t + 1], caches[0])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*(model(ids[:, 15:], cache) for cache in caches))  # the decoder and the model can take turns


@torch.no_grad()
def test_what_the_decoder_does_not_know_is_refused():
    model, cache = perturbed("modern"), KVCache(16)
    model(torch.ones(1, 3, dtype=torch.int64), cache)
    model.blocks[1].mlp.activation = "no_such"
    with pytest.raises(ValueError, match="activation = no_such: the numpy decoder does not know it"):
        Decoder(model, cache)
    model.blocks[1].mlp.activation, model.norm = "gelu", torch.nn.GroupNorm(1, 16)
    with pytest.raises(ValueError, match="norm = GroupNorm: the numpy decoder does not know it"):
        Decoder(model, cache)


@pytest.mark.parametrize("sizes", [{}, dict(n_embd=30, n_head=1, vocab_size=7), dict(n_embd=160, n_head=2, vocab_size=65)])
@torch.no_grad()
def test_a_row_is_the_same_to_the_last_bit_in_any_batch(arch, sizes):
    model = perturbed(arch, **sizes)
    ids = torch.randint(7, (17, 16), generator=torch.Generator().manual_seed(2))

    def decode(rows: slice) -> torch.Tensor:
        caches = [KVCache(16) for _ in ids[rows]]
        for row, cache in zip(ids[rows], caches, strict=True):
            model(row[None, :3], cache)
        decoder = Decoder(model, KVCache.stack(caches))
        return torch.stack([decoder(ids[rows, t : t + 1]) for t in range(3, 16)], dim=1)

    together = decode(slice(17))
    for rows in (slice(1), slice(2), slice(5), slice(7, 8), slice(14, 17)):
        assert torch.equal(decode(rows), together[rows])
