"""From the texts of an example to sequences of ids: figure 1 and section 3.3 of [G] (Radford et al. 2018)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.finetune.task import Example
from gpt.tokenizer import Tokenizer

SPECIAL = 3  # tokens that come after the tokenizer's V: start V, delimiter V + 1, extract V + 2
LENGTH_STEP = 32  # tokens, between the lengths to which training batches are padded
Encoded = tuple[list[list[int]], int]  # the sequences of an example, and its label


class Inputs(NamedTuple):
    """A batch of examples. Of N sequences, those of one example stand side by side."""

    ids: Tensor  # (N, T), padded at the end
    extract: Tensor  # (N,), the position of each sequence's extract token, its last
    labels: Tensor  # (B,), where B divides N


def to_sequences(example: Example, kind: str, tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """The sequences of an example, each of at most `length` tokens, which is at least 5.

    classification: start, text, extract
    entailment:     start, premise, delimiter, hypothesis, extract
    similarity:     both orders of the two texts, each as in entailment
    choice:         one for each candidate: start, context, delimiter, candidate, extract

    Of a text that is too long, the end stays if the text comes first or is alone, and the beginning if it is
    the second. So what is next to the delimiter stays, and of a single text how it ends. Raises UserError for
    characters that the tokenizer does not know.
    """
    start = len(tokenizer)
    texts = [tokenizer.encode(text).tolist() for text in example.texts]
    if kind == "classification":
        return [[start, *texts[0][-(length - 2) :], start + 2]]
    pairs = [(texts[0], other) for other in texts[1:]]
    if kind == "similarity":
        pairs.append((texts[1], texts[0]))
    return [join(first, second, start, length) for first, second in pairs]


def join(first: list[int], second: list[int], start: int, length: int) -> list[int]:
    """Start, first, delimiter, second, extract. Each text has half the room and what the other one leaves."""
    room = length - SPECIAL
    of_first = min(len(first), max(room // 2, room - len(second)))
    return [start, *first[len(first) - of_first :], start + 1, *second[: room - of_first], start + 2]


def collate(batch: Sequence[Encoded], longest: int = 0) -> Inputs:
    """A batch of examples.

    With `longest`, which no sequence exceeds, T is a multiple of LENGTH_STEP, or `longest`: few shapes occur.
    """
    sequences = [torch.tensor(sequence) for of_one, _ in batch for sequence in of_one]
    ids = torch.nn.utils.rnn.pad_sequence(
        sequences, batch_first=True
    )  # with 0: no position looks at a later one
    if longest:
        T = ids.size(1)
        ids = F.pad(ids, (0, min(T + -T % LENGTH_STEP, longest) - T))
    extract = torch.tensor([len(sequence) - 1 for sequence in sequences])
    return Inputs(ids, extract, torch.tensor([label for _, label in batch]))
