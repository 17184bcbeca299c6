"""Several trained models as one: the mean of their probabilities (Hansen and Salamon 1990, *Neural Network Ensembles*)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from gpt.model import GPT


class Ensemble(nn.Module):
    """Models with one vocabulary. Its context is the shortest of theirs.

    What it returns in place of logits are the logarithms of averaged probabilities, which the softmax leaves as they are.
    """

    def __init__(self, members: Sequence[GPT]) -> None:
        super().__init__()
        self.members: Iterable[GPT] = nn.ModuleList(members)  # type: ignore[assignment]
        self.config = replace(
            members[0].config, context_length=min(member.config.context_length for member in members)
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Log probabilities (B, T, V) for ids (B, T)."""
        return average([member.forward(ids) for member in self.members])


def average(logits: Sequence[Tensor]) -> Tensor:
    """The logarithm of the mean of the probabilities that several logits (..., V) stand for."""
    return torch.stack([of_one.log_softmax(dim=-1) for of_one in logits]).logsumexp(dim=0) - math.log(
        len(logits)
    )
