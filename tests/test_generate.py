import math

import pytest
import torch

from conftest import make_model
from gpt.generate import generate, pick
from gpt.settings import UserError

PROMPT = torch.tensor([[1, 2, 3]])


def drawn(model, ids=PROMPT, tokens=40, **settings) -> torch.Tensor:
    settings.setdefault("generator", torch.Generator().manual_seed(0))
    return torch.stack(list(generate(model, ids, tokens, **settings)), dim=1)


def without_cache(model, ids, tokens):
    """Greedy, each character from its whole window: up to the context's length, then its later half and what follows."""
    limit, model = model.config.context_length, model.eval()
    window, out = ids[:, -limit:], []
    for _ in range(tokens):
        if window.size(1) > limit:
            window = window[:, -(limit // 2) :]
        out.append(model(window)[:, -1].argmax(-1))
        window = torch.cat((window, out[-1][:, None]), dim=1)
    return torch.stack(out, dim=1)


@pytest.mark.parametrize("length", [1, 3, 16, 30])
def test_greedy_is_the_same_with_and_without_cache_past_the_context_too(arch, length):
    model = make_model(arch)
    model.head.weight.data.mul_(20)  # clear winners
    ids = torch.randint(11, (2, length), generator=torch.Generator().manual_seed(2))
    assert torch.equal(drawn(model, ids, 50, temperature=0), without_cache(model, ids, 50))


def test_same_seed_same_text():
    model = make_model()
    assert torch.equal(drawn(model), drawn(model))
    assert not torch.equal(drawn(model), drawn(model, generator=torch.Generator().manual_seed(1)))


def test_dropout_is_off_and_training_mode_comes_back_and_nothing_is_recorded():
    model = make_model(dropout=0.5).train()
    assert torch.equal(drawn(model, temperature=0), drawn(model, temperature=0))
    assert model.training
    stream = generate(model, PROMPT, 3)
    assert not next(stream).requires_grad
    assert torch.is_grad_enabled()
    stream.close()  # stopped half-way
    assert model.training


def test_sampling_leaves_the_global_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    model = make_model()
    torch.manual_seed(5)
    drawn(model)
    assert torch.equal(torch.rand(1), expected)


LOGITS = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()


def frequencies(**settings) -> list[float]:
    ids = pick(LOGITS.expand(20_000, 4), generator=torch.Generator().manual_seed(0), **settings)
    return (torch.bincount(ids, minlength=4) / len(ids)).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.2, 0.3, 0.4]),
        ({"temperature": 0}, [0, 0, 0, 1]),
        ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        ({"top_k": 2}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_k": 1}, [0, 0, 0, 1]),
        ({"top_k": 99}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_p": 0.4}, [0, 0, 0, 1]),
        ({"top_p": 0.41}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_p": 1.0}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_k": 3, "top_p": 0.5}, [0, 0, 3 / 7, 4 / 7]),
    ],
)
def test_pick_draws_with_the_right_frequencies(settings, expected):
    assert frequencies(**settings) == pytest.approx(expected, abs=0.012)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": -1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}],
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        drawn(make_model(), **settings)
