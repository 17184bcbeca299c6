"""The model in numpy, for one new position at a time: what `scripts/sample.py` repeats for each character.

`gpt.model` is the reference, and tests compare this file with it. One position of a small model is some 400
small operations. PyTorch takes longer to start each of them than to compute it, and numpy starts them faster
(measured in docs/log.md, 2026-11-22). Whatever is not known here, torch computes.

All activations have the shape (B, 1, C), so that numpy multiplies one row at a time by each weight matrix.
The results for a row therefore do not depend on the other rows, not even in the last bit.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from gpt.attention import Dropout, KVCache, fastest_attention
from gpt.ensemble import Ensemble, average
from gpt.generate import CachedModel
from gpt.model import GPT, MLP, Block, CausalConv, SelfAttention

Array = np.ndarray
Layer = Callable[[Array], Array]  # activations (B, 1, C) to activations (B, 1, C); the size of C may change

FEW_ROWS = 8  # numpy is clearly faster for up to so many. With 32, each is busy with reading the cache
SLOPE, CUBIC = np.float32(math.sqrt(2 / math.pi)), np.float32(0.044715)  # of GELU
KNOWN: set[type] = {Ensemble, GPT, Block, SelfAttention, MLP, CausalConv, Dropout, nn.ModuleList}
KNOWN |= {nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, nn.Identity}


class NumpyCachedModel(CachedModel):
    """A `CachedModel` that computes further positions in numpy if there are few rows and `supports(model)`.

    What is drawn for a row then depends on this row and its generator alone, to the last bit. In torch,
    matrix products may round differently in other batches, so here even the prompt is read row by row.
    """

    decoders: Sequence[Callable[[Tensor], Tensor]] = ()  # of all members; if there is none, torch computes

    def begin(self, window: Tensor) -> Tensor:
        self.decoders = ()
        if len(window) > FEW_ROWS or not supports(self.model):
            return super().begin(window)
        rows = [CachedModel(self.model, self.expected) for _ in window]
        logits = [row.begin(ids) for row, ids in zip(rows, window.split(1), strict=True)]
        self.window, self.cache, caches = window, rows[0].cache, [row.cache for row in rows]
        for layer in self.cache.keys_values:
            self.cache.keys_values[layer] = torch.cat([cache.keys_values[layer] for cache in caches], dim=1)
        for layer in self.cache.conv_inputs:
            self.cache.conv_inputs[layer] = torch.cat([cache.conv_inputs[layer] for cache in caches])
        members = self.model.members if isinstance(self.model, Ensemble) else [self.model]
        self.decoders = [make_decoder(member, self.cache) for member in members]
        return torch.cat(logits)

    def proceed(self, ids: Tensor) -> Tensor:
        if not self.decoders:
            return super().proceed(ids)
        # A diverged model overflows, as silently as it does in torch
        with np.errstate(over="ignore", invalid="ignore"):
            for position in ids.split(1, dim=1):
                logits = [decode(position) for decode in self.decoders]
                self.cache.length += 1
        return average(logits) if isinstance(self.model, Ensemble) else logits[0]


def supports(model: GPT | Ensemble) -> bool:
    """Whether everything that the model consists of is known here, and it is in float32 on a CPU."""
    parts = list(model.modules())
    return (
        all(type(part) in KNOWN for part in parts)
        and all(part.config.positions in ("learned", "rotary") for part in parts if isinstance(part, GPT))
        and all(part.attend is fastest_attention for part in parts if isinstance(part, SelfAttention))
        and all(part.activation in ACTIVATIONS for part in parts if isinstance(part, MLP))
        and all(w.device.type == "cpu" and w.dtype == torch.float32 for w in model.parameters())
    )


def make_decoder(model: GPT, cache: KVCache) -> Callable[[Tensor], Tensor]:
    """What `model.forward(ids, cache)` does for one more position: ids (B, 1) to logits (B, V).

    It works in the memory of the weights and of the cache, whose length, at least 1, the caller increases.
    """
    tokens, norm, head = as_array(model.tokens.weight), make_norm(model.norm), make_linear(model.head)
    is_learned = model.config.positions == "learned"
    positions = as_array(model.positions.weight) if is_learned else None
    rotary = None if is_learned else as_array(model.rotary)
    blocks = [make_block(block, cache, rotary) for block in model.blocks if isinstance(block, Block)]

    def decode(ids: Tensor) -> Tensor:
        x = tokens[ids.numpy()]  # (B, 1, C)
        if positions is not None:
            x = x + positions[cache.length]
        for block in blocks:
            x = block(x)
        return torch.from_numpy(head(norm(x)))[:, 0]

    return decode


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
    """A norm over the last axis. Means are matrix products, which start faster than numpy's `mean`."""
    if not isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return lambda x: x
    weight, eps = as_array(module.weight), np.float32(module.eps or 0)
    is_centred = isinstance(module, nn.LayerNorm)
    bias = as_array(module.bias) if isinstance(module, nn.LayerNorm) and module.bias is not None else None
    mean = np.full((len(weight), 1), 1 / len(weight), dtype=np.float32)

    def normalise(x: Array) -> Array:
        if is_centred:
            x = x - x @ mean
        x = x * (weight / np.sqrt((x * x) @ mean + eps))
        return x if bias is None else x + bias

    return normalise


def make_conv(module: CausalConv | None, cache: KVCache) -> Layer:
    if module is None:
        return lambda x: x
    weight, earlier = (
        as_array(module.weight)[:, 0],
        as_array(cache.conv_inputs[module]),
    )  # (w, C) and (B, w, C)

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
        mixed = weights.swapaxes(2, 3) @ values[:, :, : t + 1]  # (B, H, 1, D)
        return proj((mixed / weights.sum(axis=2, keepdims=True)).reshape(B, 1, H * D))

    return attend


ACTIVATIONS: dict[str, Layer] = {
    "gelu": lambda x: x * (1 + np.tanh(SLOPE * (x + CUBIC * x * x * x))) / 2,  # in its tanh form
    "relu": lambda x: np.maximum(x, 0),
    "relu2": lambda x: np.square(np.maximum(x, 0)),
}


def make_block(module: Block, cache: KVCache, rotary: Array | None) -> Layer:
    norm1, norm2, is_pre_norm = make_norm(module.norm1), make_norm(module.norm2), module.pre_norm
    attend, conv = make_attention(module.attn, cache, rotary), make_conv(module.mlp.conv, cache)
    fc, proj = make_linear(module.mlp.fc), make_linear(module.mlp.proj)
    activate = ACTIVATIONS[module.mlp.activation]

    def compute(x: Array) -> Array:
        if is_pre_norm:
            x = x + attend(norm1(x))
            return x + proj(activate(fc(conv(norm2(x)))))
        x = norm1(x + attend(x))
        return norm2(x + proj(activate(fc(conv(x)))))

    return compute
