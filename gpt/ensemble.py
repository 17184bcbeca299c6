"""Several models as one: their mean probabilities (Hansen and Salamon 1990, *Neural Network Ensembles*)."""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn as nn
from torch import Tensor

from gpt.attention import KVCache
from gpt.model import GPT


class Ensemble(nn.Module):
    """Models with one vocabulary. Its context is the shortest of theirs."""

    def __init__(self, members: Sequence[GPT]) -> None:
        super().__init__()
        self.members: Iterable[GPT] = nn.ModuleList(members)  # type: ignore[assignment]
        shortest = min(member.config.context_length for member in members)
        self.config = members[0].config.model_copy(update={"context_length": shortest})
        self.draft = members[0].draft

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Log probabilities (B, T, V), which softmax leaves as they are, for ids (B, T)."""
        of_members, start = [], cache.length if cache is not None else 0
        for member in self.members:
            if cache is not None:
                cache.length = start  # which the member before has advanced
            of_members.append(member.forward(ids, cache).log_softmax(dim=-1))
        return torch.stack(of_members).logsumexp(dim=0) - math.log(len(of_members))
