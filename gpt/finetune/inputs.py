from typing import NamedTuple

import torch
from torch import Tensor


class Inputs(NamedTuple):
    ids: Tensor
    extract: Tensor
    labels: Tensor


def to_sequences(example, kind, tokenizer, length):
    V = len(tokenizer)
    e = lambda t, n: tokenizer.encode(t).tolist()[:n]
    if kind == "classification":
        return [[V, *e(example.texts[0], length - 2), V + 2]]
    n = (length - 3) // 2
    t = example.texts
    if kind == "choice":
        return [[V, *e(t[0], n), V + 1, *e(c, n), V + 2] for c in t[1:]]
    out = [[V, *e(t[0], n), V + 1, *e(t[1], n), V + 2]]
    if kind == "similarity":
        out.append([V, *e(t[1], n), V + 1, *e(t[0], n), V + 2])
    return out


def collate(batch):
    seqs = [s for ss, _ in batch for s in ss]
    T = max(map(len, seqs))
    return Inputs(
        torch.tensor([s + [0] * (T - len(s)) for s in seqs]),
        torch.tensor([len(s) - 1 for s in seqs]),
        torch.tensor([l for _, l in batch]),
    )
