"""Sampling: the model continues a prompt, one token after another, each drawn from what it expects next."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt.attention import KVCache
from gpt.ensemble import Ensemble
from gpt.errors import UserError
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

Model = GPT | Ensemble
Temperature = float | Tensor  # one for all rows, or one for each (B,)
# One for all rows, one for each row, or PyTorch's global one
Generator = torch.Generator | Sequence[torch.Generator] | None


def check_sampling(temperature: Temperature, top_k: int | None = None, top_p: float | None = None) -> None:
    """Raises UserError for values that `sample_next` has no meaning for."""
    for value in torch.as_tensor(temperature, dtype=torch.float64).flatten().tolist():
        if not 0 <= value < math.inf:
            raise UserError(f"temperature = {value}: must be a finite number from 0 up")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k = {top_k}: must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p = {top_p}: must be above 0 and at most 1")


def generator_of_text(seed: int, index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Random numbers for one of several texts, which depend on the seed and this text's index alone."""
    mixed = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0]))


def sample_next(
    logits: Tensor,
    temperature: Temperature = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator = None,
) -> Tensor:
    """Draw the next ids (B,) from logits (B, V), which are divided by `temperature`.

    Below 1e-30, by which they could not be divided without overflow, it always takes the best token.
    `top_k` keeps the k best tokens (Fan et al. 2018, *Hierarchical Neural Story Generation*, section 5.4).
    `top_p` keeps the fewest best tokens whose probabilities sum to at least p, a share of what `top_k` keeps,
    but always one (Holtzman et al. 2020, *The Curious Case of Neural Text Degeneration*, section 3.1).
    """
    temperatures = torch.as_tensor(temperature, device=logits.device).float().expand(len(logits))
    best, is_greedy = logits.argmax(dim=-1), temperatures < 1e-30
    if is_greedy.all():
        return best
    divisors = temperatures.masked_fill(is_greedy, 1.0)[:, None]
    probabilities = (logits.float() / divisors).softmax(dim=-1)
    if top_k is None and top_p is None:
        return torch.where(is_greedy, best, draw(probabilities, generator))
    probabilities, order = probabilities.sort(dim=-1, descending=True)
    if top_k is not None:
        probabilities[:, min(top_k, logits.size(-1)) :] = 0
    if top_p is not None:
        of_better_tokens = probabilities.cumsum(dim=-1) - probabilities
        superfluous = of_better_tokens >= top_p * probabilities.sum(dim=-1, keepdim=True)
        superfluous[:, 0] = False  # a tiny top_p rounds to 0
        probabilities[superfluous] = 0
    drawn = order.gather(-1, draw(probabilities, generator)[:, None])[:, 0]
    return torch.where(is_greedy, best, drawn)


def draw(probabilities: Tensor, generator: Generator) -> Tensor:
    """Draw one column of each row of probabilities (B, V), which need not sum to 1: column numbers (B,).

    If each column waits for an exponentially distributed time, at a rate of its probability, then each is the
    first with its probability. `torch.multinomial` does the same, but takes longer to check its arguments.
    """
    waits = torch.empty_like(probabilities)
    if generator is None or isinstance(generator, torch.Generator):
        waits.exponential_(generator=generator)
    else:
        for row, own in zip(waits, generator, strict=True):
            row.exponential_(generator=own)
    return (probabilities / waits).argmax(dim=-1)


class CachedModel:
    """A model that keeps what it has read, so that each further token costs one position and not a window.

    When context_length positions are full, it reads their later half again, as the beginning of a new window:
    what is cached of a position depends on its place and on all before it. `logits` (B, V) are the last ones.
    `expected` positions at most will follow the first ids, so that a short text takes little memory.
    """

    def __init__(self, model: Model, expected: int = sys.maxsize) -> None:
        self.model, self.expected = model, expected
        self.window: Tensor | None = None  # the ids (B, T) that the cache holds

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits (B, V) after ids (B, T), T >= 1, which continue where the last ones ended."""
        limit = self.model.config.context_length
        if self.window is None:
            self.logits = self.begin(ids[:, -limit:])
            return self.logits
        self.expected -= ids.size(1)
        self.window = torch.cat((self.window, ids), dim=1)
        fits = self.window.size(1) <= limit
        self.logits = self.proceed(ids) if fits else self.begin(self.window[:, -max(1, limit // 2) :])
        return self.logits

    def begin(self, window: Tensor) -> Tensor:
        """Logits (B, V) after ids (B, T), read into a new cache, which takes all of its memory at once."""
        self.window = window
        self.cache = KVCache(min(self.model.config.context_length, window.size(1) + self.expected))
        return self.proceed(window)

    def proceed(self, ids: Tensor) -> Tensor:
        """Logits (B, V) after ids (B, T), which continue what the cache holds and fit into it."""
        # model(ids) may have been compiled, and would be again for each length of the cache
        return self.model.forward(ids, self.cache)[:, -1]


@torch.inference_mode()
def generate(
    model: Model | CachedModel,
    ids: Tensor,
    max_new_tokens: int,
    temperature: Temperature = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Yield the next ids (B,) after ids (B, T), T >= 1, `max_new_tokens` times, as `sample_next` draws them.

    Given a `CachedModel`, ids continue where the last ones ended, and the last token drawn is not read yet.
    The model is in eval mode while this runs. Raises UserError for meaningless settings.
    """
    check_sampling(temperature, top_k, top_p)
    cached = model if isinstance(model, CachedModel) else CachedModel(model, max_new_tokens)
    was_training = cached.model.training
    cached.model.eval()
    try:
        for _ in range(max_new_tokens):
            drawn = sample_next(cached(ids), temperature, top_k, top_p, generator)
            yield drawn
            ids = drawn[:, None]
    finally:
        cached.model.train(was_training)


def generate_text(
    model: Model,
    tokenizer: Tokenizer,
    prompt: str,
    max_new_tokens: int,
    seed: int | None = None,
    **settings: Any,
) -> str:
    """The prompt and its continuation by temperature (0.8 by default), top_k and top_p, as in `sample_next`.

    The same seed gives the same text. Without one, PyTorch's global random numbers decide. Raises UserError
    for characters that the tokenizer does not know, and for meaningless settings.
    """
    device = next(model.parameters()).device
    generator = None if seed is None else generator_of_text(seed, 0, device)
    ids = tokenizer.encode(prompt or tokenizer.default_prompt)[None].to(device)
    drawn = generate(model, ids, max_new_tokens, generator=generator, **{"temperature": 0.8} | settings)
    return prompt + tokenizer.decode(int(i) for i in drawn)


def until(pieces: Iterable[bytes], stop: bytes) -> Iterator[bytes]:
    """A text in pieces, up to where it first contains `stop`, which must not be empty and is left out.

    What may be the beginning of `stop` is held back until the next pieces decide.
    """
    held = b""
    for piece in pieces:
        held, found, _ = (held + piece).partition(stop)
        if found:
            break
        undecided = next(n for n in range(len(stop) - 1, -1, -1) if held.endswith(stop[:n]))
        yield held[: len(held) - undecided]
        held = held[len(held) - undecided :]
    yield held
