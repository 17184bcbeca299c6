"""Causal attention: first its formula, then what makes it fast without changing what it computes.

[A] is Vaswani et al. 2017, *Attention Is All You Need*. `gpt/model.py` explains steps and letters of shapes.
"""

import math
from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module) -> tuple[Tensor, Tensor]:
    """Causal scaled dot-product attention, [A] equation 1: softmax(q k' / sqrt(D)) v (steps 4, 5).

    Args: q (B, H, T, D); k and v (B, H, S, D), whose last T positions are those of q.
    Returns: the mixed values (B, H, T, D) and the weights (B, H, T, S), each row of which sums to 1.
    """
    T, S = q.size(-2), k.size(-2)
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, S)
    future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return dropout(weights) @ v, weights


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module, block_size: int = 128) -> Tensor:
    """The mixed values of `attention`, computed for `block_size` queries at a time.

    A block meets the keys up to its own end only: most scores that the mask would discard are not computed.
    """
    T, S = q.size(-2), k.size(-2)
    blocks = []
    for start in range(0, T, block_size):
        visible = S - T + min(start + block_size, T)
        queries, keys, values = (
            q[..., start : start + block_size, :],
            k[..., :visible, :],
            v[..., :visible, :],
        )
        blocks.append(attention(queries, keys, values, dropout)[0])
    return torch.cat(blocks, dim=-2)


class Dropout(nn.Module):
    """Zeroes elements with probability p during training and scales up the others to keep the mean (step 7).

    Srivastava et al. 2014, *Dropout*. On a CPU, `nn.Dropout` draws one random number per element, which takes
    longer than the attention it is applied to. Here one 64-bit number decides eight elements, one byte each,
    so p is rounded to a multiple of 1/256 (but not to 0 or 1).
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.threshold = min(max(round(p * 256), 1), 255) if p else 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        draws = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        keep = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= self.threshold
        return x * keep.to(x.dtype).mul_(256 / (256 - self.threshold))


def fastest_attention(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout) -> Tensor:
    """The mixed values (B, H, T, D) of `attention`, computed in the fastest way.

    That is PyTorch's fused kernel, but for two things on a CPU: dropout, which is slow there, and bfloat16,
    whose backward pass is. Under autocast, values alone tell: norms and rotary positions leave queries and
    keys in float32, whatever they are multiplied in. After a cached prefix, the kernel needs the mask that it
    otherwise knows.
    """
    T, S = q.size(-2), k.size(-2)
    p = dropout.p if dropout.training else 0.0
    if q.device.type == "cpu" and (p or v.dtype == torch.bfloat16):
        return blockwise_attention(q, k, v, dropout)
    past = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T) if 1 < T < S else None
    return F.scaled_dot_product_attention(q, k, v, past, p, is_causal=T == S > 1)


Attend = Callable[[Tensor, Tensor, Tensor, Dropout], Tensor]  # `fastest_attention` and what can replace it


def rotary_table(context_length: int, head_size: int) -> Tensor:
    """Cosines and signed sines (2, T, D) of the angles by which `apply_rotary` turns pairs at each position.

    Pair i turns by 10000^(-2i / D) per position (Su et al. 2021, *RoFormer*, section 3.2.2). The sines of the
    first half are negative, as `apply_rotary` needs them.
    """
    frequency = 10000.0 ** (-torch.arange(0, head_size, 2) / head_size)  # (D / 2)
    angle = torch.arange(context_length)[:, None] * frequency  # (T, D / 2)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)))


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (a, b) = (x_i, x_{i + D/2}) into (a cos - b sin, b cos + a sin). Derived in step 11.

    The product of a query and a key then depends on how far apart they are and not on where they stand (Su et
    al. 2021, *RoFormer*, section 3.4.2, with the pairs D/2 apart rather than side by side).

    Args: x (..., T, D); cos and sin (T, D), the two parts of a `rotary_table`. Returns: (..., T, D).
    """
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, dims=-1), sin)


class KVCache:
    """Keys, values and inputs of convolutions of the positions read so far: none is computed twice (step 10).

    `length` counts them; `GPT.forward` advances it, and lowering it forgets the last ones. Tensors are
    written in place: it is not for training.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self.keys_values: dict[nn.Module, Tensor] = {}  # per SelfAttention (2, B, H, capacity, D)
        self.conv_inputs: dict[nn.Module, Tensor] = {}  # per CausalConv (B, width + capacity, C)

    def append(self, layer: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store keys and values of new positions (B, H, T, D). Returns views of those of all (B, H, S, D)."""
        if layer not in self.keys_values:
            self.keys_values[layer] = k.new_empty(2, *k.shape[:2], self.capacity, k.size(-1))
        keys, values = self.keys_values[layer]
        end = self.length + k.size(-2)
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def prepend_conv_inputs(self, layer: nn.Module, x: Tensor, width: int) -> Tensor:
        """x (B, T, C) after the last `width` inputs of the layer, zeros at the start: (B, width + T, C)."""
        if layer not in self.conv_inputs:
            self.conv_inputs[layer] = x.new_zeros(x.size(0), width + self.capacity, x.size(-1))
        end = self.length + width + x.size(1)
        self.conv_inputs[layer][:, self.length + width : end] = x
        return self.conv_inputs[layer][:, self.length : end]
