"""A GPT that answers questions about texts: three more tokens and the head of [G] section 3.2.

[G] is Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training*.
Shapes: as in `gpt.model`, and L labels, N sequences of a batch of B examples.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt.config import ModelConfig
from gpt.finetune.inputs import SPECIAL, Inputs
from gpt.model import GPT


class ExtendedEmbedding(nn.Embedding):
    """The language model's embedding, sharing its `weight` (V, C), and `special` (3, C) for ids from V on."""

    def __init__(self, tokens: nn.Embedding) -> None:
        super().__init__(tokens.num_embeddings, tokens.embedding_dim, _weight=tokens.weight)
        self.weight = tokens.weight  # the same parameter, which a tied head shares too
        self.special = nn.Parameter(torch.empty(SPECIAL, tokens.embedding_dim))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, torch.cat((self.weight, self.special)))


class Classifier(GPT):
    """A GPT with all that fine-tuning adds: three embeddings, and `answer`, which is W_y in [G] equation 3.

    It is still a language model of the V tokens that it was pre-trained on, and its blocks carry the same
    names.
    """

    tokens: nn.Embedding

    def __init__(self, config: ModelConfig, kind: str, labels: int, dropout: float) -> None:
        super().__init__(config)
        self.kind = kind
        self.tokens = ExtendedEmbedding(self.tokens)
        self.answer_dropout = nn.Dropout(dropout)
        self.answer = nn.Linear(config.n_embd, answer_size(kind, labels), bias=False)
        # As large as the pre-trained embeddings are before training, so that the new ones do not drown them
        nn.init.normal_(self.tokens.special, std=0.02)
        nn.init.normal_(self.answer.weight, std=0.02)

    def scores(self, activations: Tensor, batch: Inputs) -> Tensor:
        """Scores of the labels (B, L), whose softmax is P(label), from the activations (N, T, C) of a batch.

        What is read is the activation of the extract token. It is the last real one, so that neither padding,
        which comes later, nor the size of the batch has any part in it.
        """
        rows = torch.arange(len(batch.extract), device=batch.extract.device)
        read = activations[rows, batch.extract].unflatten(0, (len(batch.labels), -1))  # (B, N / B, C)
        if self.kind == "choice":  # one score for each candidate, all by the same weights
            return self.answer(self.answer_dropout(read)).squeeze(-1)
        # The representations of two orders (similarity) are added, [G] section 3.3. Others have a single one
        return self.answer(self.answer_dropout(read.sum(dim=1)))

    @torch.no_grad()
    def exact_scores(self, batch: Inputs) -> Tensor:
        """Scores (B, L) of a batch, both on the CPU wherever the model is, which has to be in eval mode."""
        batch = Inputs(*(part.to(self.answer.weight.device) for part in batch))
        return self.scores(self.activations(batch.ids), batch).float().cpu()

    def take_over(self, source: GPT, layers: int | None) -> None:
        """Copy the embeddings and the first `layers` blocks (None: all) of a language model that is as large.

        The rest stays as it was drawn. An output head of its own is an embedding too. A final norm belongs to
        the last block, so it is taken over with all blocks only. 0 layers are the embeddings alone, where
        figure 2 (left) begins.
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


def build_classifier(task: Mapping[str, Any], config: ModelConfig) -> Classifier:
    """The model of a checkpoint whose metadata has this `task`, without its weights."""
    return Classifier(config, task["kind"], len(task["labels"]), dropout=0.0)


def extra_parameters(task: Mapping[str, Any], config: ModelConfig) -> int:
    """How many parameters such a model has besides the `config.parameter_count()` of its GPT."""
    return (SPECIAL + answer_size(task["kind"], len(task["labels"]))) * config.n_embd
