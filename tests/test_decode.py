import pytest
import torch

from conftest import make_model
from gpt.decode import Decoder
from gpt.model import Cache


@pytest.mark.parametrize("activation", ["gelu", "relu", "relu2"])
@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@torch.no_grad()
def test_decoder_computes_what_the_model_does(arch, norm, activation):
    model = make_model(arch, norm=norm, activation=activation).eval()
    for parameter in model.parameters():  # norms and biases too are something to get wrong
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    ids = torch.randint(11, (3, 16), generator=torch.Generator().manual_seed(2))
    caches = Cache(16), Cache(16)
    for cache in caches:
        model(ids[:, :5], cache)
    decoder = Decoder(model, caches[1])
    for t in range(5, 15):
        torch.testing.assert_close(decoder(ids[:, t : t + 1]), model(ids[:, t : t + 1], caches[0])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*(model(ids[:, 15:], cache) for cache in caches))  # and they can take turns
