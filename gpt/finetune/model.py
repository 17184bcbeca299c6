"""A GPT that answers questions about texts, and the sequences that it reads: figure 1 of [G].

Shapes: as in `gpt.model`, and L labels, N sequences of a batch of B examples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt.config import ModelConfig
from gpt.finetune.tasks import Example
from gpt.model import GPT
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

    Of texts that are too long, what is next to the delimiter stays, or of a single one its end.
    Raises UserError for characters that the tokenizer does not know.
    """
    start, room = len(tokenizer), length - SPECIAL
    first, *others = (tokenizer.encode(text).tolist() for text in example.texts)
    if kind == "classification":
        return [[start, *first[-(length - 2) :], start + 2]]
    pairs = [(first, other) for other in others] + [(others[0], first)] * (kind == "similarity")
    sequences = []
    for one, other in pairs:  # each text has half the room and what the other one leaves
        of_one = min(len(one), max(room // 2, room - len(other)))
        sequences.append([start, *one[len(one) - of_one :], start + 1, *other[: room - of_one], start + 2])
    return sequences


def collate(batch: Sequence[Encoded], longest: int = 0) -> Inputs:
    """A batch of examples. Given the `longest` length of all, T is that or a multiple of LENGTH_STEP."""
    sequences = [torch.tensor(sequence) for of_one, _ in batch for sequence in of_one]
    ids = pad_sequence(sequences, batch_first=True)  # with 0: no position looks at a later one
    if longest:
        T = ids.size(1)
        ids = F.pad(ids, (0, min(T + -T % LENGTH_STEP, longest) - T))
    extract, labels = [len(sequence) - 1 for sequence in sequences], [label for _, label in batch]
    return Inputs(ids, torch.tensor(extract), torch.tensor(labels))


class ExtendedEmbedding(nn.Embedding):
    """The language model's embedding, sharing its `weight` (V, C), and `special` (3, C) for ids from V on."""

    def __init__(self, tokens: nn.Embedding) -> None:
        super().__init__(tokens.num_embeddings, tokens.embedding_dim, _weight=tokens.weight)
        self.weight = tokens.weight  # the same parameter, which a tied head shares too
        self.special = nn.Parameter(torch.empty(SPECIAL, tokens.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, torch.cat((self.weight, self.special)))


class Classifier(GPT):
    """A GPT, still a language model, with three more embeddings, and `answer`, W_y in [G] equation 3."""

    tokens: nn.Embedding

    def __init__(self, config: ModelConfig, kind: str, labels: int, dropout: float = 0.0) -> None:
        super().__init__(config)
        self.kind, self.answer_dropout = kind, nn.Dropout(dropout)
        self.tokens = ExtendedEmbedding(self.tokens)
        # A choice compares one score of each candidate
        self.answer = nn.Linear(config.n_embd, 1 if kind == "choice" else labels, bias=False)
        # As large as the pre-trained embeddings are before training, so that the new ones do not drown them
        nn.init.normal_(self.tokens.special, std=0.02)
        nn.init.normal_(self.answer.weight, std=0.02)

    def scores(self, activations: Tensor, batch: Inputs) -> Tensor:
        """Scores of the labels (B, L), whose softmax is P(label), from a batch's activations (N, T, C)."""
        # Read at the extract token, the last one of a sequence: padding, which comes later, has no part in it
        rows = torch.arange(len(batch.extract), device=batch.extract.device)
        read = activations[rows, batch.extract].unflatten(0, (len(batch.labels), -1))  # (B, N / B, C)
        if self.kind != "choice":  # [G] section 3.3 adds the two orders of similarity; others have one
            read = read.sum(dim=1, keepdim=True)
        return self.answer(self.answer_dropout(read)).flatten(1)  # of a choice one score for each candidate

    @torch.no_grad()
    def exact_scores(self, batch: Inputs) -> Tensor:
        """Scores (B, L) of a batch, both on the CPU wherever the model is, which has to be in eval mode."""
        batch = Inputs(*(part.to(self.answer.weight.device) for part in batch))
        return self.scores(self.activations(batch.ids), batch).float().cpu()

    def take_over(self, source: GPT, layers: int | None) -> None:
        """Copy embeddings, head and the first `layers` blocks (None: all) of a GPT that is as large."""
        has = self.config.n_layer
        left_out = tuple(f"blocks.{number}." for number in range(has if layers is None else layers, has))
        left_out += ("norm.",) if left_out else ()  # the final one belongs to the last block
        taken = {name: it for name, it in source.state_dict().items() if not name.startswith(left_out)}
        self.load_state_dict(taken, strict=False)


def extra_parameters(config: ModelConfig, kind: str, labels: int) -> int:
    """How many parameters such a Classifier has besides the `config.parameter_count()` of its GPT."""
    return (SPECIAL + (1 if kind == "choice" else labels)) * config.n_embd
