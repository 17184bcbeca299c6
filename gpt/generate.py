"""Sampling: the model continues a prompt, one token after another, each drawn from what it expects next."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt.draft import CachedModel, Generator, Model, waiting_times
from gpt.errors import UserError
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Raises UserError for values without a meaning. None leaves a filter out.

    Logits are divided by `temperature`: one for all rows, or one for each (B,). Below 1e-30, by which they
    could not be divided without overflow, the best token is always taken.
    `top_k` keeps the k best tokens (Fan et al. 2018, *Hierarchical Neural Story Generation*, section 5.4).
    `top_p` keeps the fewest best tokens whose probabilities sum to at least p, a share of what `top_k` keeps,
    but always one (Holtzman et al. 2020, *The Curious Case of Neural Text Degeneration*, section 3.1).
    `min_p` keeps those at least p times as likely as the best one (Nguyen et al. 2024, *Min-p Sampling*).
    `repetition_penalty` divides positive logits of tokens in the window by it, and multiplies negative ones
    (Keskar et al. 2019, *CTRL*, section 4.1).
    """

    temperature: float | Tensor = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def __post_init__(self) -> None:
        for value in torch.as_tensor(self.temperature, dtype=torch.float64).flatten().tolist():
            if not 0 <= value < math.inf:
                raise UserError(f"temperature = {value}: must be a finite number from 0 up")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k = {self.top_k}: must be at least 1")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise UserError(f"{name} = {share}: must be above 0 and at most 1")
        if self.repetition_penalty is not None and not 1 <= self.repetition_penalty < math.inf:
            reason = "must be a finite number from 1 up"
            raise UserError(f"repetition_penalty = {self.repetition_penalty}: {reason}")

    def draw(self, logits: Tensor, waits: Tensor, window: Tensor | None = None) -> Tensor:
        """The next ids (B,) after a window (B, T): the first to come by logits and waiting times (B, V)."""
        if self.repetition_penalty is not None and window is not None:
            seen = logits.gather(-1, window)
            penalized = torch.where(seen > 0, seen / self.repetition_penalty, seen * self.repetition_penalty)
            logits = logits.scatter(-1, window, penalized)
        temperatures = torch.as_tensor(self.temperature, device=logits.device).float().expand(len(logits))
        best, is_greedy = logits.argmax(dim=-1), temperatures < 1e-30
        if is_greedy.all():
            return best
        divisors = temperatures.masked_fill(is_greedy, 1.0)[:, None]
        probabilities = self.keep_likely((logits.float() / divisors).softmax(dim=-1))
        return torch.where(is_greedy, best, (probabilities / waits).argmax(dim=-1))

    def keep_likely(self, probabilities: Tensor) -> Tensor:
        """The probabilities (B, V) with zeros for all tokens but those that the filters keep."""
        if self.top_k is self.top_p is self.min_p is None:
            return probabilities
        ranked, order = probabilities.sort(dim=-1, descending=True)
        if self.top_k is not None:
            ranked[:, min(self.top_k, ranked.size(-1)) :] = 0
        if self.top_p is not None:
            of_better_tokens = ranked.cumsum(dim=-1) - ranked
            superfluous = of_better_tokens >= self.top_p * ranked.sum(dim=-1, keepdim=True)
            superfluous[:, 0] = False  # a tiny top_p rounds to 0
            ranked[superfluous] = 0
        if self.min_p is not None:
            ranked[ranked < self.min_p * ranked[:, :1]] = 0
        return torch.empty_like(ranked).scatter_(-1, order, ranked)


def sample_next(logits: Tensor, generator: Generator = None, **settings: Any) -> Tensor:
    """Draw the next ids (B,) from logits (B, V), by the settings of `Sampling`."""
    return Sampling(**settings).draw(logits, waiting_times(logits, generator))


def generator_of_text(seed: int, index: int, device: str | torch.device = "cpu") -> torch.Generator:
    """Random numbers for one of several texts, which depend on the seed and this text's index alone."""
    mixed = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0]))


@torch.inference_mode()
def generate(
    model: Model | CachedModel, ids: Tensor, max_new_tokens: int, generator: Generator = None, **settings: Any
) -> Iterator[Tensor]:
    """Yield the next ids (B,) after ids (B, T), T >= 1, `max_new_tokens` times, as `Sampling` has it.

    Given a `CachedModel`, ids continue where the last ones ended, and the last token drawn is not read yet.
    The model is in eval mode while this runs. Raises UserError for meaningless settings.
    """
    sampling = Sampling(**settings)
    cached = model if isinstance(model, CachedModel) else CachedModel(model, max_new_tokens)
    was_training = cached.model.training
    cached.model.eval()
    try:
        while max_new_tokens > 0:
            most = 0 if sampling.repetition_penalty else max_new_tokens - 1  # it would make guesses wrong
            guesses = cached.guess(ids, most, sampling.temperature, generator)
            logits = cached(ids, guesses)  # (B, 1 + N, V), of one text or without guesses
            waits = torch.cat(cached.waits[: logits.size(1)])
            drawn = sampling.draw(logits.flatten(0, 1), waits, cached.window).view(len(ids), -1)
            right = (drawn[:, :-1] == guesses[:, : logits.size(1) - 1]).cumprod(dim=1)
            for number in range(1 + int(right.sum())):
                if number:
                    cached.confirm(ids)
                cached.logits = logits[:, number]
                ids = drawn[:, number : number + 1]
                cached.waits.pop(0)
                yield ids[:, 0]
                max_new_tokens -= 1
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
