"""Sampling: one character after another, each drawn from what the model expects next."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from gpt.decode import Decoder
from gpt.model import GPT, Cache
from gpt.settings import UserError


def check_sampling(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises UserError for values that `pick` has no meaning for."""
    if not 0 <= temperature < math.inf:
        raise UserError(f"temperature = {temperature}: must be finite and not negative; 0 is greedy, 1 the model's own odds")
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k = {top_k}: must be at least 1; leave it out for no limit")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p = {top_p}: a share of probability; set it above 0 and up to 1")


def pick(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Next ids (B,) drawn from logits (B, V).

    temperature divides the logits; 0 takes the best. top_k keeps the k best, top_p the fewest best whose probabilities
    sum to at least p (Holtzman et al. 2020, section 3.1).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature  # the best at 0, so that nothing overflows
    if top_k is None and top_p is None:
        return torch.multinomial(logits.softmax(dim=-1), num_samples=1, generator=generator).squeeze(-1)
    logits, order = logits.sort(dim=-1, descending=True)
    probabilities = logits.softmax(dim=-1)
    if top_k is not None:
        probabilities[:, top_k:] = 0
    if top_p is not None:
        before = probabilities.cumsum(dim=-1) - probabilities  # of all better ones
        probabilities[before >= top_p * probabilities.sum(dim=-1, keepdim=True)] = 0
    drawn = torch.multinomial(probabilities, num_samples=1, generator=generator)
    return order.gather(-1, drawn).squeeze(-1)


@torch.inference_mode()
def generate(
    model: GPT,
    ids: Tensor,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield `tokens` times the next ids (B,) after ids (B, T), T >= 1, as they are drawn.

    The model sees at most context_length positions: the end of a longer prompt, and when the context is full, its later
    half, which is read anew. So each character costs one position, not a whole window, whatever the positions are.
    The model is in eval mode while this runs and in its former mode when it ends. Raises UserError for senseless settings.
    """
    check_sampling(temperature, top_k, top_p)
    limit, was_training = model.config.context_length, model.training
    weight = model.head.weight
    small = len(ids) <= 4 and weight.device.type == "cpu" and weight.dtype == torch.float32
    model.eval()
    try:
        unseen, cache, decoder = ids[:, -limit:], Cache(limit), None
        window = [unseen]  # what the model has read, in pieces
        for _ in range(tokens):
            if cache.length + unseen.size(1) > limit:
                unseen, cache, decoder = torch.cat(window, dim=1)[:, -max(1, limit // 2) :], Cache(limit), None
                window = [unseen]
            if small and cache.length:  # more streams have arithmetic enough to be faster in torch
                decoder = decoder or Decoder(model, cache)
                logits = decoder(unseen)
            else:  # forward: past torch.compile, which would compile anew for each length of the cache
                logits = model.forward(unseen, cache)[:, -1]  # (B, V)
            unseen = pick(logits, temperature, top_k, top_p, generator)[:, None]
            window.append(unseen)
            yield unseen[:, 0]
    finally:
        model.train(was_training)
