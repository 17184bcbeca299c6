"""Reading as few positions as possible while a text is written: a cache, and guesses that are read at once.

Guesses are made by counting and checked by the model in one pass, which is speculative decoding (Leviathan et
al. 2023, *Fast Inference from Transformers via Speculative Decoding*), here with common random numbers, so
that guesses change no text. Each token gets a random waiting time, and the one with the smallest ratio of
wait to probability comes next. A guess is the one that wins with the same waits if the probabilities are how
often tokens came next in the training text. Of the model that comes with gpt, seven in ten are right.
"""

import sys
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from gpt.attention import KVCache
from gpt.ensemble import Ensemble
from gpt.model import GPT

Model = GPT | Ensemble
# One for all rows, one for each row, or PyTorch's global one
Generator = torch.Generator | Sequence[torch.Generator] | None

GUESSES = 5  # at once. With more, few of the last ones are still right
LONGEST = 5  # tokens of a context
SUCCESSORS = 6  # of a context that are kept, the most frequent ones
CONTEXTS = 30_000  # that are kept, the most frequent ones: 0.6 MB in a checkpoint of up to 256 tokens
COUNTED = 2**21  # tokens at the beginning of the training text; more would take seconds


def waiting_times(like: Tensor, generator: Generator) -> Tensor:
    """Exponentially distributed waiting times (B, V) in float32, for logits or the like of that shape.

    If a token comes after wait / probability, each is the first with its probability. `torch.multinomial`
    does the same, but takes longer to check its arguments.
    """
    drawn = torch.empty_like(like, dtype=torch.float32)
    if generator is None or isinstance(generator, torch.Generator):
        return drawn.exponential_(generator=generator)
    for row, own in zip(drawn, generator, strict=True):
        row.exponential_(generator=own)
    return drawn


def count(ids: np.ndarray, vocab_size: int) -> dict[str, Tensor]:
    """What came next how often after the most frequent contexts in ids (N,): the table of a `Drafter`.

    It has "contexts" (N,), each of which is one number, with its last id + 1 as the last digit to the base
    V + 1, and for each of them up to SUCCESSORS ids, the most frequent first, and their probabilities in
    255ths: "successors" and "probabilities" (N, SUCCESSORS).
    """
    ids, pairs = ids[:COUNTED].astype(np.int64), []
    for length in range(1, min(longest_context(vocab_size), len(ids) - 1) + 1):
        context = [ids[length - 1 - back : len(ids) - 1 - back] for back in range(length)]
        keys = sum((of_one + 1) * (vocab_size + 1) ** back for back, of_one in enumerate(context))
        pairs.append(np.unique(keys * vocab_size + ids[length:], return_counts=True))
    joint, times = (np.concatenate(column) for column in zip(*pairs, strict=True))
    keys, nexts = np.divmod(joint, vocab_size)
    order = np.lexsort((nexts, -times, keys))
    keys, nexts, times = keys[order], nexts[order], times[order]
    contexts, starts, rows = np.unique(keys, return_index=True, return_inverse=True)
    rank, totals = np.arange(len(keys)) - starts[rows], np.bincount(rows, times)
    kept = rank < SUCCESSORS
    successors = np.zeros((len(contexts), SUCCESSORS), np.min_scalar_type(vocab_size - 1))
    probabilities = np.zeros((len(contexts), SUCCESSORS), np.uint8)
    successors[rows[kept], rank[kept]] = nexts[kept]
    probabilities[rows[kept], rank[kept]] = np.rint(255 * times[kept] / totals[rows[kept]])
    best = np.sort(np.argsort(-totals, stable=True)[: min(CONTEXTS, np.sum(totals > 1))])
    table = {"contexts": contexts, "successors": successors, "probabilities": probabilities}
    return {name: torch.from_numpy(array[best]) for name, array in table.items()}


def longest_context(vocab_size: int) -> int:
    """The most tokens of which a key, with a successor, is an integer of 63 bits: at most LONGEST."""
    return max(n for n in range(LONGEST + 1) if (vocab_size + 1) ** (n + 1) < 2**63)


class Drafter:
    """Guesses next tokens by a table that `count`, or another program, has made.

    Raises KeyError or ValueError for a table of which something is missing or does not fit.
    """

    def __init__(self, table: Mapping[str, Tensor], vocab_size: int) -> None:
        self.table, self.vocab_size = table, vocab_size
        self.successors, self.probabilities = table["successors"].numpy(), table["probabilities"].numpy()
        shapes = {self.successors.shape, self.probabilities.shape}
        if shapes != {(len(table["contexts"]), SUCCESSORS)} or (self.successors >= vocab_size).any():
            raise ValueError("the table of what follows what does not fit the vocabulary")
        self.rows = {key: row for row, key in enumerate(table["contexts"].tolist())}  # by context

    def __call__(self, ids: Sequence[int], waits: np.ndarray, temperature: float) -> list[int]:
        """What will follow ids (T,) if tokens have these waits (N, V) there: N guesses, or none."""
        known, exponent = list(ids), 1 / max(temperature, 1e-3)
        for of_tokens in waits:
            key, place, row = 0, 1, None
            for id in reversed(known[-LONGEST:]):  # the longest context that is in the table
                key, place = key + (id + 1) * place, place * (self.vocab_size + 1)
                if key not in self.rows:
                    break
                row = self.rows[key]
            if row is None:  # even the last token alone is unknown
                break
            successors, probabilities = self.successors[row], self.probabilities[row] / 255
            known.append(int(successors[np.argmax(probabilities**exponent / of_tokens[successors])]))
        return known[len(ids) :]


class CachedModel:
    """A model that keeps what it has read, so that each further token costs one position and not a window.

    When context_length positions are full, it reads their later half again, as the beginning of a new window:
    what is cached of a position depends on its place and on all before it. `expected` positions at most will
    follow the first ids, so that a short text takes little memory.
    """

    window: Tensor  # the ids (B, T) that the cache holds
    logits: Tensor  # (B, V), those that `generate` drew from last

    def __init__(self, model: Model, expected: int = sys.maxsize) -> None:
        self.model, self.expected, self.is_new = model, expected, True
        self.waits: list[Tensor] = []  # those (B, V) of each token to come for which they are already drawn

    def __call__(self, ids: Tensor, guesses: Tensor | None = None) -> Tensor:
        """Logits (B, 1 + N, V) after ids (B, T), T >= 1, and after each of N guesses (B, N) of what follows.

        The ids continue where the last ones ended. Guesses do not count as read until they are confirmed, and
        the last ones are left out if there is no room for them.
        """
        limit, unread = self.model.config.context_length, ids
        known = ids if self.is_new else torch.cat((self.window, ids), dim=1)
        self.expected -= 0 if self.is_new else ids.size(1)
        if self.is_new or known.size(1) > limit:
            unread = known = known[:, -limit if self.is_new else -max(1, limit // 2) :]
            self.cache, self.is_new = KVCache(min(limit, known.size(1) + self.expected)), False
        self.window, length = known, known.size(1)
        if guesses is not None:
            unread = torch.cat((unread, guesses[:, : self.cache.capacity - length]), dim=1)
        # model(unread) may have been compiled, and would be again for each length of the cache
        logits = self.model.forward(unread, self.cache)
        first, self.cache.length = length - 1 - self.cache.length, length
        return logits[:, first:]

    def guess(self, ids: Tensor, count: int, temperature: float | Tensor, generator: Generator) -> Tensor:
        """Guesses (B, N) of what will be drawn after ids (B, T), with the waiting times that are to come.

        At most `count`, and none for several rows, which would seldom be right together.
        """
        drafter, count = self.model.draft, min(count, GUESSES)
        if drafter is None or len(ids) > 1:
            count = 0
        like = torch.empty(len(ids), self.model.config.known_vocab_size(), device=ids.device)
        while len(self.waits) <= count:
            self.waits.append(waiting_times(like, generator))
        if not count:
            return ids[:, :0]
        known = ids if self.is_new else torch.cat((self.window[:, -LONGEST:], ids), dim=1)
        waits = torch.cat(self.waits[:count]).cpu().numpy()
        found = drafter(known[0, -LONGEST:].tolist(), waits, float(torch.as_tensor(temperature)))
        return torch.tensor([found], dtype=ids.dtype, device=ids.device)

    def confirm(self, guess: Tensor) -> None:
        """Count the first guess (B, 1) that does not count yet as read."""
        self.window = torch.cat((self.window, guess), dim=1)
        self.expected -= 1
        self.cache.length += 1
