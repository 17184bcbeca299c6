"""Sampling: the model writes on from a prompt, one token after another, each drawn from what it expects next."""

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from gpt.attention import KVCache
from gpt.ensemble import Ensemble, average
from gpt.errors import UserError
from gpt.interop.numpy_decoder import Decoder
from gpt.model import GPT

FEW_ROWS = 8  # for up to so many, the numpy decoder is clearly faster than torch. For 32, each is busy with reading the cache
Generator = (
    torch.Generator | Sequence[torch.Generator] | None
)  # one for all rows, one for each row, or PyTorch's global one


def check_sampling(temperature: float, top_k: int | None = None, top_p: float | None = None) -> None:
    """Raises UserError for values that `sample_next` has no meaning for."""
    if not 0 <= temperature < math.inf:
        raise UserError(
            f"temperature = {temperature}: not a finite number from 0 up; set 0 for greedy, 1 for the model's own odds"
        )
    if top_k is not None and top_k < 1:
        raise UserError(f"top_k = {top_k}: must be at least 1; leave it out for no limit")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError(f"top_p = {top_p}: not a probability above 0; set it above 0 and up to 1")


def generator_of_text(seed: int, index: int, device: str = "cpu") -> torch.Generator:
    """Random numbers for one of several texts, which depend on the seed and on this text's index and on nothing else."""
    mixed = np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(mixed[0]))


def sample_next(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator = None,
) -> Tensor:
    """Draw the next ids (B,) from logits (B, V).

    Logits are divided by `temperature`. Temperature 0 always takes the best token, and so does one below 1e-30, by which logits
    could not be divided without overflow.
    `top_k` keeps the k best tokens (Fan et al. 2018, *Hierarchical Neural Story Generation*, section 5.4). `top_p` keeps the
    fewest best tokens whose probabilities sum to at least p, but always one (Holtzman et al. 2020, *The Curious Case of Neural
    Text Degeneration*, section 3.1). With both, `top_p` is a share of what `top_k` keeps.
    """
    if temperature < 1e-30:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    if top_k is None and top_p is None:
        return draw(probabilities, generator)
    probabilities, order = probabilities.sort(dim=-1, descending=True)
    if top_k is not None:
        probabilities[:, min(top_k, logits.size(-1)) :] = 0
    if top_p is not None:
        of_better_tokens = probabilities.cumsum(dim=-1) - probabilities
        superfluous = of_better_tokens >= top_p * probabilities.sum(dim=-1, keepdim=True)
        superfluous[:, 0] = False  # a tiny top_p rounds to 0
        probabilities[superfluous] = 0
    return order.gather(-1, draw(probabilities, generator)[:, None])[:, 0]


def draw(probabilities: Tensor, generator: Generator) -> Tensor:
    """Draw one column of each row of probabilities (B, V), which need not sum to 1: column numbers (B,).

    If each column waits for an exponentially distributed time, at a rate of its probability, then each is the first with its
    probability. `torch.multinomial` does the same, but spends more time on checking its arguments than on this.
    """
    waits = torch.empty_like(probabilities)
    if generator is None or isinstance(generator, torch.Generator):
        waits.exponential_(generator=generator)
    else:
        for row, own in zip(waits, generator, strict=True):
            row.exponential_(generator=own)
    return (probabilities / waits).argmax(dim=-1)


class Reader:
    """A model with the positions that it has read, so that each further token costs one position and not a whole window.

    It reads at most context_length positions: the end of a longer text, and, when the context is full, its later half anew.
    `logits` (B, V) are those after the last position. `expected` is how many positions at most will follow the first ids, so that
    a short text takes little memory.
    """

    def __init__(self, model: GPT | Ensemble, expected: int = sys.maxsize) -> None:
        self.model, self.expected = model, expected
        self.pieces: list[Tensor] = []  # all that has been read and not been forgotten, (B, T) each
        self.length = 0  # how many positions that is

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits (B, V) after ids (B, T), T >= 1, which go on where the last ones ended."""
        limit, is_first = self.model.config.context_length, not self.pieces
        self.pieces.append(ids)
        self.length += ids.size(1)
        if is_first or self.length > limit:
            window = torch.cat(self.pieces, dim=1)[:, -(limit if is_first else max(1, limit // 2)) :]
            self.pieces, self.length = [window], window.size(1)
            self.logits, self.read_one_more = read(
                self.model, window, min(limit, self.length + self.expected)
            )
        else:
            for position in ids.split(1, dim=1):
                self.logits = self.read_one_more(position)
        self.expected -= 1 if is_first else ids.size(1)
        return self.logits


@torch.inference_mode()
def generate(
    model: GPT | Ensemble | Reader,
    ids: Tensor,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: Generator = None,
) -> Iterator[Tensor]:
    """Yield the next ids (B,) after ids (B, T), T >= 1, `max_new_tokens` times, as they are drawn.

    Given a `Reader`, ids go on where the last ones ended, and the last token drawn has not been read yet.

    With one generator for each row, at most FEW_ROWS of them, and a float32 model on a CPU, what is drawn for a row depends on
    this row and its generator alone, to the last bit. Elsewhere matrix products may round differently in batches of another
    size.

    The model is in eval mode while this runs and in its former mode afterwards. Raises UserError for meaningless settings.
    """
    check_sampling(temperature, top_k, top_p)
    reader = model if isinstance(model, Reader) else Reader(model, max_new_tokens)
    was_training = reader.model.training
    reader.model.eval()
    try:
        for _ in range(max_new_tokens):
            drawn = sample_next(reader(ids), temperature, top_k, top_p, generator)
            yield drawn
            ids = drawn[:, None]
    finally:
        reader.model.train(was_training)


def read(model: GPT | Ensemble, ids: Tensor, capacity: int) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Read ids (B, T) into a new cache for `capacity` positions, T at least. All of its memory is taken at once.

    Returns: logits (B, V) after the last position, and a function that reads one more position, ids (B, 1) to logits (B, V).
    """
    if isinstance(model, Ensemble):
        logits_of_members, readers = zip(
            *(read(member, ids, capacity) for member in model.members), strict=True
        )
        return average(logits_of_members), lambda last: average([reader(last) for reader in readers])
    # model.forward rather than model(...) goes past torch.compile, which would compile anew for each length of the cache
    weight = model.head.weight
    if len(ids) <= FEW_ROWS and weight.device.type == "cpu" and weight.dtype == torch.float32:
        caches = [KVCache(capacity) for _ in ids]
        logits = [model.forward(row, cache)[:, -1] for row, cache in zip(ids.split(1), caches, strict=True)]
        return torch.cat(logits), Decoder(model, KVCache.stack(caches))
    cache = KVCache(capacity)
    return model.forward(ids, cache)[:, -1], lambda last: model.forward(last, cache)[:, -1]


def until(pieces: Iterable[bytes], stop: bytes) -> Iterator[bytes]:
    """A text in pieces, up to where it first contains `stop`, which must not be empty and is left out.

    What may be the beginning of `stop` is held back until the next pieces decide.
    """
    held = b""
    for piece in pieces:
        before, found, _ = (held + piece).partition(stop)
        if found:
            yield before
            return
        longest = min(len(stop) - 1, len(before))
        undecided = next((n for n in range(longest, 0, -1) if stop.startswith(before[-n:])), 0)
        end = len(before) - undecided
        yield before[:end]
        held = before[end:]
    yield held
