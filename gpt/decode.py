"""One more position of a GPT, in numpy: what sampling on a CPU does over and over.

`gpt.model` is the reference, and tests hold this against it. One position of a small model is a third of a millisecond of
arithmetic in some 400 operations, and torch takes longer to start each than to compute it; numpy starts them faster.
With it one stream of model=small is sampled two to three times as fast as with `GPT.forward` (dev/LOG.md, 2026-11-22).
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from gpt.model import GPT, MLP, Block, Cache, Convolution, SelfAttention

Function = Callable[[np.ndarray], np.ndarray]


class Decoder:
    """What `GPT.forward(ids, cache)` does, for one position behind those that the cache holds: at least one.

    Works in the memory of weights and cache, so it can take turns with the model. For float32 on a CPU.
    """

    def __init__(self, model: GPT, cache: Cache) -> None:
        self.cache = cache
        self.tokens = array(model.tokens.weight)
        learned = model.config.positions == "learned"
        self.positions = array(model.positions.weight) if learned else None
        rotary = None if learned else (array(model.cos), array(model.sin))
        self.blocks = [block(part, cache, rotary) for part in model.blocks]
        self.norm, self.head = norm(model.norm), linear(model.head)

    def __call__(self, ids: Tensor) -> Tensor:
        """Logits (B, V) after ids (B, 1); the cache grows by one."""
        x = self.tokens[ids[:, 0].numpy()]  # (B, C)
        if self.positions is not None:
            x = x + self.positions[self.cache.length]
        for apply in self.blocks:
            x = apply(x)
        self.cache.length += 1
        return torch.from_numpy(self.head(self.norm(x)))


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def linear(module: nn.Linear) -> Function:
    weight = array(module.weight).T
    if module.bias is None:
        return lambda x: x @ weight
    bias = array(module.bias)
    return lambda x: x @ weight + bias


def norm(module: nn.Module) -> Function:
    """LayerNorm or RMSNorm over the last axis; the mean is a product, as that starts faster than numpy's own."""
    if isinstance(module, nn.Identity):
        return lambda x: x
    weight, centred = array(module.weight), isinstance(module, nn.LayerNorm)
    bias = array(module.bias) if centred and module.bias is not None else None
    average = np.full((len(weight), 1), 1 / len(weight), dtype=np.float32)
    eps = np.float32(module.eps)

    def apply(x: np.ndarray) -> np.ndarray:
        if centred:
            x = x - x @ average
        x = x * (weight / np.sqrt((x * x) @ average + eps))
        return x if bias is None else x + bias

    return apply


def convolution(module: Convolution | None, cache: Cache) -> Function:
    if module is None:
        return lambda x: x
    weight, before = array(module.weight)[:, 0], array(cache.kept[module])  # (width, C) and (B, width, C)

    def apply(x: np.ndarray) -> np.ndarray:
        y = x + np.einsum("bwc,wc->bc", before, weight)
        before[:, :-1] = before[:, 1:]
        before[:, -1] = x
        return y

    return apply


def attention(module: SelfAttention, cache: Cache, rotary: tuple[np.ndarray, np.ndarray] | None) -> Function:
    qkv, proj, qk_norm, conv = linear(module.qkv), linear(module.proj), norm(module.qk_norm), convolution(module.conv, cache)
    keys, values = array(cache.kept[module])  # (B, H, capacity, D) each
    heads, size = module.n_head, keys.shape[-1]
    scale = np.float32(1 / math.sqrt(size))

    def apply(x: np.ndarray) -> np.ndarray:
        start, B = cache.length, len(x)
        parts = qkv(conv(x)).reshape(B, 3, heads, size)
        qk = qk_norm(parts[:, :2])  # (B, 2, H, D)
        if rotary is not None:
            cos, sin = rotary
            swapped = np.concatenate((qk[..., size // 2 :], qk[..., : size // 2]), axis=-1)
            qk = qk * cos[start] + swapped * sin[start]
        keys[:, :, start], values[:, :, start] = qk[:, 1], parts[:, 2]
        q = qk[:, 0, :, :, None] * scale  # (B, H, D, 1)
        scores = keys[:, :, : start + 1] @ q  # (B, H, S, 1)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        y = weights.swapaxes(2, 3) @ values[:, :, : start + 1] / weights.sum(axis=2, keepdims=True)  # (B, H, 1, D)
        return proj(y.reshape(B, -1))

    return apply


def mlp(module: MLP, cache: Cache) -> Function:
    fc, proj, conv, activation = linear(module.fc), linear(module.proj), convolution(module.conv, cache), module.activation
    a, b = np.float32(math.sqrt(2 / math.pi)), np.float32(0.044715)

    def apply(x: np.ndarray) -> np.ndarray:
        x = fc(conv(x))
        if activation == "gelu":
            x = x * (1 + np.tanh(a * (x + b * x * x * x))) / 2
        else:
            x = np.maximum(x, 0)
            if activation == "relu2":
                x = x * x
        return proj(x)

    return apply


def block(module: Block, cache: Cache, rotary: tuple[np.ndarray, np.ndarray] | None) -> Function:
    norm1, norm2 = norm(module.norm1), norm(module.norm2)
    attend, think = attention(module.attn, cache, rotary), mlp(module.mlp, cache)

    def apply(x: np.ndarray) -> np.ndarray:
        if module.pre:
            x = x + attend(norm1(x))
            return x + think(norm2(x))
        x = norm1(x + attend(x))
        return norm2(x + think(x))

    return apply
