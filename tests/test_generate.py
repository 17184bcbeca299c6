"""Sampling by torch: what is drawn, how often, and with how much memory."""

import itertools
import math

import pytest
import torch

import gpt.draft
import gpt.generate
from conftest import make_model
from gpt.attention import KVCache
from gpt.ensemble import Ensemble
from gpt.errors import UserError
from gpt.generate import generate, generate_text, generator_of_text, sample_next, until
from gpt.model import GPT
from gpt.tokenizer import CharTokenizer

PROMPT = torch.tensor([[1, 2, 3]])


def generated(model: GPT, ids: torch.Tensor = PROMPT, max_new_tokens: int = 40, **settings) -> torch.Tensor:
    settings.setdefault("generator", torch.Generator().manual_seed(0))
    return torch.stack(list(generate(model, ids, max_new_tokens, **settings)), dim=1)


def generated_without_cache(model: GPT, ids: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
    """Greedy, each token from its window, which is cut to its later half when it exceeds the context."""
    limit, model = model.config.context_length, model.eval()
    window, out = ids[:, -limit:], []
    for _ in range(max_new_tokens):
        if window.size(1) > limit:
            window = window[:, -(limit // 2) :]
        out.append(model(window)[:, -1].argmax(-1))
        window = torch.cat((window, out[-1][:, None]), dim=1)
    return torch.stack(out, dim=1)


@pytest.mark.parametrize("length", [1, 3, 16, 30])
def test_greedy_text_is_the_same_with_and_without_a_cache(arch, length):
    model = make_model(arch)
    model.head.weight.data.mul_(20)  # so that the best token is clear of rounding
    ids = torch.randint(11, (2, length), generator=torch.Generator().manual_seed(2))
    assert torch.equal(generated(model, ids, 50, temperature=0), generated_without_cache(model, ids, 50))


def test_ensemble_writes_what_it_expects_past_the_shortest_context():
    ensemble = Ensemble([make_model("modern"), make_model("gpt1", context_length=12)])
    found = generated(ensemble, max_new_tokens=20, temperature=0)
    assert torch.equal(found, generated_without_cache(ensemble, PROMPT, 20))


def test_cache_is_no_larger_than_the_text_needs(monkeypatch):
    """A long context takes many gigabytes in a model of few parameters."""
    capacities = []
    monkeypatch.setattr(gpt.draft, "KVCache", lambda size: capacities.append(size) or KVCache(size))
    generated(make_model(context_length=2**17), max_new_tokens=4)
    generated(make_model(context_length=16), max_new_tokens=4)
    assert capacities == [7, 7]
    generated(make_model(context_length=16), max_new_tokens=18)  # 3 + 14 exceed it, and 4 are left
    assert capacities[2:] == [16, 12]


def test_seed_decides_the_text_and_the_global_random_numbers_are_left_alone():
    model, other = make_model(), torch.Generator().manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(generated(model), generated(model))
    assert not torch.equal(generated(model), generated(model, generator=other))
    assert torch.equal(torch.get_rng_state(), before)
    assert generated(make_model("gpt2", context_length=1), max_new_tokens=5).shape == (1, 5)


def test_text_for_people_begins_with_the_prompt():
    model, tokenizer = make_model(), CharTokenizer("abcdefghij\n")
    text = generate_text(model, tokenizer, "abc", 30, temperature=1.5, seed=1)
    ids = generate(model, tokenizer.encode("abc")[None], 30, generator_of_text(1, 0), temperature=1.5)
    assert text == "abc" + tokenizer.decode(int(id) for id in ids)
    assert text != generate_text(model, tokenizer, "abc", 30, temperature=1.5, seed=2)
    assert len(generate_text(model, tokenizer, "", 30, top_k=2)) == 30  # which starts after a line break
    with pytest.raises(UserError, match="'x' not among the 11 characters"):
        generate_text(model, tokenizer, "x", 1)


@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "top_p": 0.9}])
def test_each_row_has_its_own_temperature(settings):
    """Three texts in one batch are those that are drawn one after another."""
    model, temperatures = make_model(), [0.5, 0.0, 2.0]
    generators = [torch.Generator().manual_seed(3) for _ in temperatures]
    several = {"temperature": torch.tensor(temperatures), "generator": generators, **settings}
    together = generated(model, PROMPT.expand(3, -1), **several)
    for row, temperature in zip(together, temperatures, strict=True):
        alone = torch.Generator().manual_seed(3)
        assert torch.equal(row[None], generated(model, temperature=temperature, generator=alone, **settings))


def test_every_text_of_every_seed_has_random_numbers_of_its_own():
    pairs = itertools.product(range(20), range(20))
    assert len({torch.rand(1, generator=generator_of_text(*pair)).item() for pair in pairs}) == 400


def test_dropout_is_off_and_the_former_mode_comes_back():
    model = make_model(dropout=0.5).train()
    assert torch.equal(generated(model, temperature=0), generated(model, temperature=0))
    assert model.training
    stream = generate(model, PROMPT, 3)
    assert not next(stream).requires_grad
    assert torch.is_grad_enabled()
    stream.close()  # before its end
    assert model.training


LOGITS = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()


FREQUENCIES = [
    ({}, [0.1, 0.2, 0.3, 0.4]),
    ({"temperature": 1e-46}, [0, 0, 0, 1]),  # a subnormal number in float32
    ({"temperature": 1e-37}, [0, 0, 0, 1]),
    ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
    ({"temperature": 1e300}, [0.25, 0.25, 0.25, 0.25]),
    ({"top_k": 2}, [0, 0, 3 / 7, 4 / 7]),
    ({"top_k": 10**30}, [0.1, 0.2, 0.3, 0.4]),
    ({"top_p": 1e-50}, [0, 0, 0, 1]),
    ({"top_p": 0.4}, [0, 0, 0, 1]),
    ({"top_p": 0.41}, [0, 0, 3 / 7, 4 / 7]),
    ({"top_k": 3, "top_p": 0.5}, [0, 0, 3 / 7, 4 / 7]),
    ({"min_p": 0.6}, [0, 0, 3 / 7, 4 / 7]),
    ({"min_p": 1.0}, [0, 0, 0, 1]),
]


@pytest.mark.parametrize("own_generators", [False, True])
@pytest.mark.parametrize(("settings", "expected"), FREQUENCIES)
def test_tokens_are_drawn_with_the_right_frequencies(settings, expected, own_generators):
    """By a chi-square test at 1e-4, which a probability that is wrong by 0.02 does not pass."""
    count, generator = 20_000, torch.Generator().manual_seed(0)
    if own_generators:
        count = 2_000
        generator = [generator_of_text(0, index) for index in range(count)]
    ids = sample_next(LOGITS.expand(count, 4), generator=generator, **settings)
    found, wanted = torch.bincount(ids, minlength=4), count * torch.tensor(expected)
    assert (found[wanted == 0] == 0).all()
    possible = wanted > 0
    chi_square = ((found - wanted)[possible] ** 2 / wanted[possible]).sum()
    freedom = max(possible.sum().item() - 1, 1)
    assert torch.special.gammaincc(torch.tensor(freedom / 2), chi_square / 2) > 1e-4


MEANINGLESS = [{"temperature": value} for value in (-1, math.nan, math.inf, torch.tensor([0.5, -1.0]))]
MEANINGLESS += [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": 0.0}, {"min_p": math.nan}]
MEANINGLESS += [{"repetition_penalty": value} for value in (0.9, math.inf, math.nan)]


@pytest.mark.parametrize("settings", MEANINGLESS)
def test_meaningless_settings_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        generated(make_model(), **settings)


def test_repetition_penalty_makes_what_the_window_holds_less_likely():
    """Logits above 0 are divided by it, and those below are multiplied."""
    window, waits = torch.tensor([[1, 1, 3]]), torch.ones(1, 4)
    for logits, penalty, best in (
        ([0.0, 5.0, 2.0, 1.0], None, 1),
        ([0.0, 5.0, 2.0, 1.0], 2.0, 1),
        ([0.0, 5.0, 2.0, 1.0], 3.0, 2),
        ([-3.0, -1.0, -2.5, -1.0], 2.0, 1),
        ([-3.0, -1.0, -2.5, -1.0], 2.6, 2),
    ):
        sampling = gpt.generate.Sampling(0, repetition_penalty=penalty)
        assert sampling.draw(torch.tensor([logits]), waits, window) == best
    texts = [generated(make_model(), temperature=0, repetition_penalty=x)[0].tolist() for x in (1.0, 1e9)]
    assert len(set(texts[0])) < len(set(texts[1]))


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize("stop", [b"\n\n", b"aab", b"aaab", b"x", b"abaac", b"no such"])
def test_text_ends_before_the_stop_string_however_it_is_cut_into_pieces(stop, size):
    text = b"abaab aaaaab\n\nx abaabaac"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert b"".join(until(pieces, stop)) == text.partition(stop)[0]


def test_nothing_is_drawn_after_the_stop_string():
    pieces = iter([b"a", b"b", b"c", b"d"])
    shown = [piece for piece in until(pieces, b"bc") if piece]
    assert (shown, list(pieces)) == ([b"a"], [b"d"])
