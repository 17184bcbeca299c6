"""The numpy decoder computes what torch does, and leaves to torch what it does not know."""

from typing import get_args

import pytest
import torch

from conftest import make_model
from gpt.config import ModelConfig
from gpt.ensemble import Ensemble
from gpt.generate import CachedModel, generate, generator_of_text
from gpt.interop.numpy_decoder import NumpyCachedModel
from gpt.model import GPT


def choices(field: str) -> tuple[str, ...]:
    return get_args(ModelConfig.model_fields[field].annotation)


def perturbed(arch: str, **changes) -> GPT:
    """A model in eval mode whose norms and biases also differ from what they start as."""
    model = make_model(arch, **changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            random = torch.Generator().manual_seed(parameter.numel())
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return model


def read(cached: CachedModel, ids: torch.Tensor, prompt: int = 5) -> torch.Tensor:
    """The logits (B, N, V) after a prompt and after each id that follows."""
    return torch.stack([cached(ids[:, :prompt])] + [cached(t) for t in ids[:, prompt:].split(1, 1)], dim=1)


@pytest.mark.parametrize("activation", choices("activation"))
@pytest.mark.parametrize("norm", choices("norm"))
@torch.no_grad()
def test_numpy_computes_what_torch_does_far_beyond_the_context(arch, norm, activation):
    model = perturbed(arch, norm=norm, activation=activation)
    ids = torch.randint(11, (3, 40), generator=torch.Generator().manual_seed(2))
    cached = NumpyCachedModel(model, expected=35)
    torch.testing.assert_close(read(cached, ids), read(CachedModel(model), ids), rtol=1e-5, atol=1e-5)
    assert cached.members


@torch.no_grad()
def test_numpy_computes_an_ensemble():
    ensemble = Ensemble([perturbed("modern"), perturbed("gpt1", context_length=12)])
    ids = torch.randint(11, (2, 30), generator=torch.Generator().manual_seed(2))
    cached = NumpyCachedModel(ensemble)
    torch.testing.assert_close(read(cached, ids), read(CachedModel(ensemble), ids), rtol=1e-5, atol=1e-5)
    assert len(cached.members) == 2


@pytest.mark.parametrize("kind", ["other dtype", "many rows"])
@torch.no_grad()
def test_other_dtypes_and_many_rows_are_left_to_torch(kind):
    model, rows = (perturbed("modern"), 9) if kind == "many rows" else (perturbed("modern").double(), 2)
    ids = torch.randint(11, (rows, 30), generator=torch.Generator().manual_seed(2))
    cached = NumpyCachedModel(model)
    assert torch.equal(read(cached, ids), read(CachedModel(model), ids))
    assert not cached.members


@pytest.mark.parametrize(
    "sizes", [{}, dict(n_embd=30, n_head=1, vocab_size=7), dict(n_embd=160, vocab_size=65)]
)
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 5, "top_p": 0.9}])
def test_text_of_a_row_is_the_same_to_the_last_bit_in_any_batch(arch, sizes, settings):
    model = perturbed(arch, **sizes)
    ids = torch.randint(7, (8, 12), generator=torch.Generator().manual_seed(2))

    def draw(*rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        cached, generators = NumpyCachedModel(model), [generator_of_text(4, row) for row in rows]
        drawn = list(generate(cached, ids[list(rows)], 30, generator=generators, **settings))
        return torch.stack(drawn, dim=1), cached.logits

    together, logits = draw(*range(8))
    for rows in ([0], [7], [0, 1, 2], [4, 6]):
        found, last = draw(*rows)
        assert torch.equal(found, together[rows])
        assert torch.equal(last, logits[rows])
