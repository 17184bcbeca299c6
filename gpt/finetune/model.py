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
HEAD_RATE = 10  # how much faster `answer` learns than the rest: a step of Adam is as large for any gradient
SURPRISE_SCALE = 64  # of nats, so that one weight among many others is learnt in as few steps as they are
LENGTH_STEP = 32  # tokens, between the lengths to which training batches are padded
Encoded = tuple[list[list[int]], int]  # the sequences of an example, and its label


class Inputs(NamedTuple):
    """A batch of examples. Of N sequences, those of one example stand side by side."""

    ids: Tensor  # (N, T), padded at the end
    extract: Tensor  # (N,), the position of each sequence's extract token, its last
    labels: Tensor  # (B,), where B divides N

    def to(self, device: torch.device) -> "Inputs":
        return Inputs(*(part.to(device) for part in self))


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
    """A GPT, still a language model, with three more embeddings, and `answer`, W_y in [G] equation 3.

    As in [G], the answer reads the activation at the extract token. With `surprise`, a departure from it, the
    answer also reads how likely the second of two texts is after the first, or how likely a single text is.
    """

    tokens: ExtendedEmbedding

    def __init__(
        self, config: ModelConfig, kind: str, labels: int, surprise: bool = False, dropout: float = 0.0
    ) -> None:
        super().__init__(config)
        self.kind, self.surprise, self.answer_dropout = kind, surprise, nn.Dropout(dropout)
        self.tokens = ExtendedEmbedding(self.tokens)
        # A choice compares one score of each candidate
        self.answer = nn.Linear(config.n_embd + surprise, 1 if kind == "choice" else labels, bias=False)
        nn.init.normal_(self.tokens.special, std=0.02)
        nn.init.zeros_(self.answer.weight)  # every label is as likely as the others at first

    def scores(self, activations: Tensor, batch: Inputs) -> Tensor:
        """Scores of the labels (B, L), whose softmax is P(label), from a batch's activations (N, T, C)."""
        # Read at the extract token, the last one of a sequence: padding, which comes later, has no part in it
        rows = torch.arange(len(batch.extract), device=batch.extract.device)
        read = self.answer_dropout(activations[rows, batch.extract])  # (N, C)
        if self.surprise:
            surprise = SURPRISE_SCALE * self.mean_log_likelihood(activations, batch)
            read = torch.cat((read, surprise[:, None].to(read.dtype)), dim=1)
        read = HEAD_RATE * read.unflatten(0, (len(batch.labels), -1))  # (B, N / B, C)
        if self.kind != "choice":  # [G] section 3.3 adds the two orders of similarity; others have one
            read = read.sum(dim=1, keepdim=True)
        return self.answer(read).flatten(1)  # of a choice one score for each candidate

    def log_likelihoods(self, activations: Tensor, batch: Inputs) -> tuple[Tensor, Tensor]:
        """log p of each token after those before it (N, T - 1), in nats; whether it is one of the texts' own.

        It is 0 for the others: special tokens are not in the output head, and padding is no token at all.
        """
        targets, vocab_size = batch.ids[:, 1:], self.config.known_vocab_size()
        positions = torch.arange(targets.size(1), device=targets.device)
        is_text = (targets < vocab_size) & (positions + 1 < batch.extract[:, None])
        # Logits of all positions, since their number depends on the batch's shape alone (see ExampleBatches)
        log_p = self.head(activations[:, :-1]).float().log_softmax(dim=-1)  # (N, T - 1, V)
        of_targets = log_p.gather(-1, targets.clamp(max=vocab_size - 1)[..., None]).squeeze(-1)
        return of_targets * is_text, is_text

    def mean_log_likelihood(self, activations: Tensor, batch: Inputs) -> Tensor:
        """The mean of log p over the tokens after the delimiter, or over a single text (N,), in nats."""
        log_p, is_text = self.log_likelihoods(activations, batch)
        is_second = (batch.ids == self.config.known_vocab_size() + 1).cumsum(dim=1)[:, :-1] > 0
        counted = is_text & (is_second | ~is_second.any(dim=1, keepdim=True))
        return (log_p * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)

    @torch.no_grad()
    def exact_scores(self, batch: Inputs) -> Tensor:
        """Scores (B, L) of a batch, both on the CPU wherever the model is, which has to be in eval mode."""
        batch = batch.to(self.answer.weight.device)
        return self.scores(self.activations(batch.ids), batch).float().cpu()

    @torch.no_grad()
    def take_over(self, source: GPT, layers: int | None, tokenizer: Tokenizer) -> None:
        """Copy embeddings, head and the first `layers` blocks (None: all) of a GPT that is as large.

        The new tokens begin as what stands in their place in a text, a line break or a blank, so that the
        source continues the text around them as it has learnt to.
        """
        has = self.config.n_layer
        left_out = tuple(f"blocks.{number}." for number in range(has if layers is None else layers, has))
        left_out += ("norm.",) if left_out else ()  # the final one belongs to the last block
        taken = {name: it for name, it in source.state_dict().items() if not name.startswith(left_out)}
        self.load_state_dict(taken, strict=False)
        for number, text in enumerate("\n \n"):  # start, delimiter, extract
            if known := tokenizer.drop_unknown(text):
                self.tokens.special[number] = self.tokens.weight[tokenizer.encode(known)[-1]]


def extra_parameters(config: ModelConfig, kind: str, labels: int, surprise: bool = False) -> int:
    """How many parameters such a Classifier has besides the `config.parameter_count()` of its GPT."""
    answers = 1 if kind == "choice" else labels
    return SPECIAL * config.n_embd + answers * (config.n_embd + surprise)
