"""A GPT that answers questions about texts: the input transformations' three tokens and the head of [G] section 3.2.

[G] is Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training*. L labels, N sequences of a batch.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt.config import ModelConfig
from gpt.errors import UserError, convert, shorten
from gpt.finetune.inputs import SPECIAL
from gpt.finetune.task import KINDS
from gpt.model import GPT


class ExtendedEmbedding(nn.Embedding):
    """The embedding of a language model, whose `weight` (V, C) it shares, with `special` (3, C) for the ids from V on."""

    def __init__(self, tokens: nn.Embedding) -> None:
        super().__init__(tokens.num_embeddings, tokens.embedding_dim, _weight=tokens.weight)
        self.weight = tokens.weight  # the same parameter, which a tied head shares too
        self.special = nn.Parameter(torch.empty(SPECIAL, tokens.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        V = self.num_embeddings
        ordinary = F.embedding(ids.clamp(max=V - 1), self.weight)
        special = F.embedding((ids - V).clamp(min=0), self.special)
        return torch.where((ids >= V).unsqueeze(-1), special, ordinary)


class Classifier(GPT):
    """A GPT with the only new parameters that fine-tuning needs: three embeddings and W_y, here `answer` ([G] equation 3).

    It is a language model still, over the V tokens that it was pre-trained on. Its blocks carry the same names.
    """

    tokens: nn.Embedding

    def __init__(self, config: ModelConfig, kind: str, labels: int, dropout: float) -> None:
        super().__init__(config)
        self.kind = kind
        self.tokens = ExtendedEmbedding(self.tokens)
        self.answer_dropout = nn.Dropout(dropout)
        self.answer = nn.Linear(config.n_embd, answer_size(kind, labels), bias=False)
        # As large as the embeddings that were pre-trained are before training, so that the new ones do not drown them
        nn.init.normal_(self.tokens.special, std=0.02)
        nn.init.normal_(self.answer.weight, std=0.02)

    def scores(self, activations: Tensor, extract: Tensor, per_example: int) -> Tensor:
        """Scores of the labels (B, L), whose softmax is P(label), from activations (N, T, C) where N = B * per_example.

        What is read is the activation at `extract` (N,), the position of the extract token. It is the last real one, so that
        neither padding, which comes later, nor the size of the batch has any part in it.
        """
        rows = torch.arange(len(extract), device=extract.device)
        read = activations[rows, extract].unflatten(0, (-1, per_example))  # (B, per_example, C)
        if self.kind == "choice":  # one score for each candidate, all by the same weights
            return self.answer(self.answer_dropout(read)).squeeze(-1)
        # The representations of the two orders of a similarity task are added ([G] section 3.3). Others have a single one
        return self.answer(self.answer_dropout(read.sum(dim=1)))

    def take_over(self, source: GPT, layers: int | None) -> None:
        """Copy the embeddings and the first `layers` blocks (None: all) from a language model of the same sizes.

        The rest stays as it was drawn. An output head of its own is an embedding too. A final norm belongs to the last
        block, so it is taken over with all blocks only. 0 layers are the embeddings alone, where figure 2 (left) begins.
        """
        layers = self.config.n_layer if layers is None else layers
        weights = source.state_dict()
        for name in list(weights):
            is_dropped = name.startswith("norm.") and layers < self.config.n_layer
            if is_dropped or (name.startswith("blocks.") and int(name.split(".")[1]) >= layers):
                del weights[name]
        self.load_state_dict(weights, strict=False)


def answer_size(kind: str, labels: int) -> int:
    """How many scores W_y gives for one representation: a choice compares one score of each candidate."""
    return 1 if kind == "choice" else labels


def describe_classifier(
    metadata: Mapping[str, Any], config: ModelConfig
) -> tuple[Callable[[ModelConfig], Classifier], int]:
    """What makes the model of a fine-tuned run's checkpoint, and how many parameters it has beside those of its GPT.

    Raises UserError, or whatever wrong types lead to: the metadata may come from anybody.
    """
    kind, labels, _ = check_task(metadata["task"])
    extra = (SPECIAL + answer_size(kind, len(labels))) * config.n_embd
    return partial(Classifier, kind=kind, labels=len(labels), dropout=0.0), extra


def check_task(task: Any) -> tuple[str, list[str], int]:
    """The kind, the labels and the longest sequence of a task, as a checkpoint holds them. Raises UserError for what is none."""
    kind, labels = convert(task["kind"], str, "task.kind"), convert(task["labels"], list[str], "task.labels")
    length = convert(task["max_length"], int, "task.max_length")
    if kind not in KINDS or not 2 <= len(labels) <= 1000 or length < 5:
        raise UserError(f"task = {shorten(kind)} with {len(labels):,} labels: no task of this version")
    return kind, labels, length
