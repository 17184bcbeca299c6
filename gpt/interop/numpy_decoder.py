"""The model in numpy, for one new position at a time: what `scripts/sample.py` repeats for each character.

`gpt.model` is the reference, and tests compare this file with it. One position of a small model is some 400
small operations. PyTorch takes longer to start each of them than to compute it, and numpy starts them faster
(measured in docs/log.md, 2026-11-22).

All activations have the shape (B, 1, C), so that numpy multiplies one row at a time by each weight matrix.
The results for a row therefore do not depend on the other rows, not even in the last bit.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from gpt.attention import KVCache
from gpt.ensemble import Ensemble, average
from gpt.generate import CachedModel
from gpt.model import CausalConv, SelfAttention

Array = np.ndarray

FEW_ROWS = 8  # numpy is clearly faster for up to so many. With 32, each is busy with reading the cache
SLOPE, CUBIC = math.sqrt(2 / math.pi), 0.044715  # of GELU
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * (1 + np.tanh(SLOPE * (x + CUBIC * x * x * x))) / 2,  # in its tanh form
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.square(np.maximum(x, 0)),
}


class NumpyCachedModel(CachedModel):
    """A `CachedModel` that computes further positions in numpy if there are few rows, in float32 on a CPU.

    What is drawn for a row then depends on this row and its generator alone, to the last bit. In torch,
    matrix products may round differently in other batches, so here even the prompt is read row by row.
    """

    members: Sequence[Any] = ()  # the model, or all of an ensemble, as arrays; if empty, torch computes

    def begin(self, window: Tensor) -> Tensor:
        self.members = ()
        weight = next(self.model.parameters())
        members = self.model.members if isinstance(self.model, Ensemble) else [self.model]
        is_known = all(member.config.activation in ACTIVATIONS for member in members)
        is_fit = len(window) <= FEW_ROWS and weight.device.type == "cpu" and weight.dtype == torch.float32
        if not (is_known and is_fit):
            return super().begin(window)
        rows = [CachedModel(self.model, self.expected) for _ in window]
        logits = [row.begin(ids) for row, ids in zip(rows, window.split(1), strict=True)]
        self.window, self.cache = window, rows[0].cache
        for kind, batch_axis in (("keys_values", 1), ("conv_inputs", 0)):
            first, *others = (getattr(row.cache, kind) for row in rows)
            for layer in first:
                first[layer] = torch.cat([first[layer], *(other[layer] for other in others)], dim=batch_axis)
        self.members = [as_arrays(member, self.cache) for member in members]
        return torch.cat(logits)

    def proceed(self, ids: Tensor) -> Tensor:
        if not self.members:
            return super().proceed(ids)
        # A diverged model overflows, as silently as it does in torch
        with np.errstate(over="ignore", invalid="ignore"):
            for position in ids.numpy().T[:, :, None]:  # (B, 1)
                found = [decode(member, position, self.cache.length) for member in self.members]
                self.cache.length += 1
        logits = [torch.from_numpy(of_one) for of_one in found]
        return average(logits) if isinstance(self.model, Ensemble) else logits[0]


def as_arrays(module: nn.Module, cached: KVCache) -> Any:
    """A module and its parts as plain objects, which take less time, in the memory of the tensors."""
    if isinstance(module, nn.ModuleList):
        return [as_arrays(part, cached) for part in module]
    tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    if isinstance(module, CausalConv):
        tensors["earlier"] = cached.conv_inputs[module]  # (B, w, C)
    if isinstance(module, SelfAttention):
        tensors["keys"], tensors["values"] = cached.keys_values[module]  # (B, H, capacity, D) each
    found = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    found |= {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    found |= {name: as_arrays(part, cached) for name, part in module.named_children()}
    return SimpleNamespace(**{"kind": type(module), "bias": None} | found)


def decode(model: Any, ids: Array, t: int) -> Array:
    """Logits (B, V) for ids (B, 1) at position t >= 1, as `GPT.forward` computes them with the same cache."""
    x, rotary = model.tokens.weight[ids], None  # (B, 1, C)
    if model.config.positions == "learned":
        x = x + model.positions.weight[t]
    else:
        rotary = model.rotary[:, t]  # cosines and sines (2, D)
    for block in model.blocks:
        if block.pre_norm:
            x = x + attend(block.attn, norm(block.norm1, x), t, rotary)
            x = x + feed_forward(block.mlp, norm(block.norm2, x))
        else:
            x = norm(block.norm1, x + attend(block.attn, x, t, rotary))
            x = norm(block.norm2, x + feed_forward(block.mlp, x))
    return linear(model.head, norm(model.norm, x))[:, 0]


def attend(layer: Any, x: Array, t: int, rotary: Array | None) -> Array:
    B, H, D = len(x), layer.n_head, layer.keys.shape[-1]
    projected = linear(layer.qkv, convolve(layer.conv, x)).reshape(B, 3, H, D)
    qk = norm(layer.qk_norm, projected[:, :2])  # (B, 2, H, D)
    if rotary is not None:
        swapped = np.concatenate((qk[..., D // 2 :], qk[..., : D // 2]), axis=-1)
        qk = qk * rotary[0] + swapped * rotary[1]
    layer.keys[:, :, t], layer.values[:, :, t] = qk[:, 1], projected[:, 2]
    q = qk[:, 0, :, :, None] * (1 / math.sqrt(D))  # (B, H, D, 1)
    scores = layer.keys[:, :, : t + 1] @ q  # (B, H, S, 1)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    mixed = weights.swapaxes(2, 3) @ layer.values[:, :, : t + 1]  # (B, H, 1, D)
    return linear(layer.proj, (mixed / weights.sum(axis=2, keepdims=True)).reshape(B, 1, H * D))


def feed_forward(layer: Any, x: Array) -> Array:
    return linear(layer.proj, ACTIVATIONS[layer.activation](linear(layer.fc, convolve(layer.conv, x))))


def linear(layer: Any, x: Array) -> Array:
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def norm(layer: Any, x: Array) -> Array:
    """A norm over the last axis. Means are matrix products, which start faster than numpy's `mean`."""
    if layer.kind is nn.Identity:
        return x
    mean = averaging(x.shape[-1])
    if layer.kind is nn.LayerNorm:
        x = x - x @ mean
    x = x * (layer.weight / np.sqrt((x * x) @ mean + layer.eps))
    return x if layer.bias is None else x + layer.bias


@cache
def averaging(size: int) -> Array:
    """The column (C, 1) by which a product takes the mean of C numbers."""
    return np.full((size, 1), 1 / size, dtype=np.float32)


def convolve(layer: Any, x: Array) -> Array:
    if layer is None:
        return x
    y = x + np.einsum("bwc,wc->bc", layer.earlier, layer.weight[:, 0])[:, None]
    layer.earlier[:, :-1] = layer.earlier[:, 1:]
    layer.earlier[:, -1:] = x
    return y
