"""The model in numpy, for one new position at a time: what sampling on a CPU repeats for each character.

`gpt.model` is the reference, and tests compare this file with it. One position of a small model is some 400 small operations.
PyTorch takes longer to start each of them than to compute it, and numpy starts them faster (measured in dev/LOG.md,
2026-11-22).

All activations have the shape (B, 1, C), so that numpy multiplies one row at a time by each weight matrix. The results for one
row therefore do not depend on the other rows, not even in the last bit, while all rows share the cost of starting operations.
"""

import math
from collections.abc import Callable

import numpy as np
import torch.nn as nn
from torch import Tensor, from_numpy

from gpt.attention import KVCache
from gpt.model import GPT, MLP, Block, CausalConv, SelfAttention

Array = np.ndarray
Layer = Callable[[Array], Array]  # activations (B, 1, C) to activations (B, 1, C); the size of C may change


class Decoder:
    """Computes what `GPT.forward(ids, cache)` does for one position after those in the cache, which holds at least one.

    It works in the memory of the model's weights and of the cache, so it can take turns with the model. The model must be in
    float32 on a CPU and in eval mode.
    """

    def __init__(self, model: GPT, cache: KVCache) -> None:
        self.cache = cache
        self.tokens = as_array(model.tokens.weight)
        learned = model.config.positions == "learned"
        self.positions = as_array(model.positions.weight) if learned else None
        rotary = None if learned else as_array(model.rotary)
        self.blocks = [make_block(block, cache, rotary) for block in model.blocks if isinstance(block, Block)]
        self.norm, self.head = make_norm(model.norm), make_linear(model.head)

    @np.errstate(
        over="ignore", invalid="ignore"
    )  # a diverged model overflows, as silently as it does in torch
    def __call__(self, ids: Tensor) -> Tensor:
        """Logits (B, V) after ids (B, 1). The cache grows by one position."""
        x = self.tokens[ids.numpy()]  # (B, 1, C)
        if self.positions is not None:
            x = x + self.positions[self.cache.length]
        for block in self.blocks:
            x = block(x)
        self.cache.length += 1
        return from_numpy(self.head(self.norm(x)))[:, 0]


def as_array(tensor: Tensor) -> Array:
    """The tensor's own memory as an array."""
    return tensor.detach().numpy()


def make_linear(module: nn.Linear) -> Layer:
    weight = as_array(module.weight).T
    if module.bias is None:
        return lambda x: x @ weight
    bias = as_array(module.bias)
    return lambda x: x @ weight + bias


def make_norm(module: nn.Module) -> Layer:
    """LayerNorm or RMSNorm over the last axis. Means are matrix products, which start faster than numpy's `mean`."""
    if isinstance(module, nn.Identity):
        return lambda x: x
    if not isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        raise ValueError(
            f"norm = {type(module).__name__}: the numpy decoder does not know it; add it to make_norm"
        )
    centred = isinstance(module, nn.LayerNorm)
    weight, eps = as_array(module.weight), np.float32(module.eps or 0)
    bias = as_array(module.bias) if isinstance(module, nn.LayerNorm) and module.bias is not None else None
    average = np.full((len(weight), 1), 1 / len(weight), dtype=np.float32)

    def normalise(x: Array) -> Array:
        if centred:
            x = x - x @ average
        x = x * (weight / np.sqrt((x * x) @ average + eps))
        return x if bias is None else x + bias

    return normalise


def make_conv(module: CausalConv | None, cache: KVCache) -> Layer:
    if module is None:
        return lambda x: x
    weight, earlier = (
        as_array(module.weight)[:, 0],
        as_array(cache.conv_inputs[module]),
    )  # (width, C) and (B, width, C)

    def convolve(x: Array) -> Array:
        y = x + np.einsum("bwc,wc->bc", earlier, weight)[:, None]
        earlier[:, :-1] = earlier[:, 1:]
        earlier[:, -1:] = x
        return y

    return convolve


def make_attention(module: SelfAttention, cache: KVCache, rotary: Array | None) -> Layer:
    qkv, proj = make_linear(module.qkv), make_linear(module.proj)
    qk_norm, conv = make_norm(module.qk_norm), make_conv(module.conv, cache)
    keys, values = as_array(cache.keys_values[module])  # (B, H, capacity, D) each
    H, D = module.n_head, keys.shape[-1]
    scale = np.float32(1 / math.sqrt(D))

    def attend(x: Array) -> Array:
        t, B = cache.length, len(x)  # t: the new position
        projected = qkv(conv(x)).reshape(B, 3, H, D)
        qk = qk_norm(projected[:, :2])  # (B, 2, H, D)
        if rotary is not None:
            cos, sin = rotary[:, t]  # (D) each
            swapped = np.concatenate((qk[..., D // 2 :], qk[..., : D // 2]), axis=-1)
            qk = qk * cos + swapped * sin
        keys[:, :, t], values[:, :, t] = qk[:, 1], projected[:, 2]
        q = qk[:, 0, :, :, None] * scale  # (B, H, D, 1)
        scores = keys[:, :, : t + 1] @ q  # (B, H, S, 1)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        y = (
            weights.swapaxes(2, 3) @ values[:, :, : t + 1] / weights.sum(axis=2, keepdims=True)
        )  # (B, H, 1, D)
        return proj(y.reshape(B, 1, H * D))

    return attend


def make_mlp(module: MLP, cache: KVCache) -> Layer:
    fc, proj = make_linear(module.fc), make_linear(module.proj)
    conv, activation = make_conv(module.conv, cache), module.activation
    if activation not in ("gelu", "relu", "relu2"):
        raise ValueError(f"activation = {activation}: the numpy decoder does not know it; add it to make_mlp")
    a, b = np.float32(math.sqrt(2 / math.pi)), np.float32(0.044715)  # of GELU's tanh form

    def feed_forward(x: Array) -> Array:
        x = fc(conv(x))  # (B, 1, 4C)
        if activation == "gelu":
            x = x * (1 + np.tanh(a * (x + b * x * x * x))) / 2
        else:
            x = np.maximum(x, 0)
            if activation == "relu2":
                x = x * x
        return proj(x)

    return feed_forward


def make_block(module: Block, cache: KVCache, rotary: Array | None) -> Layer:
    norm1, norm2 = make_norm(module.norm1), make_norm(module.norm2)
    attend, feed_forward = make_attention(module.attn, cache, rotary), make_mlp(module.mlp, cache)

    def pre_norm_block(x: Array) -> Array:
        x = x + attend(norm1(x))
        return x + feed_forward(norm2(x))

    def post_norm_block(x: Array) -> Array:
        x = norm1(x + attend(x))
        return norm2(x + feed_forward(x))

    return pre_norm_block if module.pre_norm else post_norm_block
