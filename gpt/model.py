"""The decoder-only transformer of GPT, in plain torch; read from top to bottom, it builds up from small parts to `GPT`.

Sources, cited below as [A] and [G]:
    [A] Vaswani et al. 2017, *Attention Is All You Need*
    [G] Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training*

Shapes, everywhere in this package:
    B batch, T context (positions in the input), C n_embd, H heads, D head size (C / H), V vocabulary,
    S positions that can be attended to (T, or more when earlier keys and values come from a cache)
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

CHOICES = {
    "norm_position": ("pre", "post"),
    "norm": ("layernorm", "rmsnorm"),
    "positions": ("learned", "rotary"),
    "activation": ("gelu", "relu", "relu2"),
}


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides which tensors a model has and what it computes. No defaults: `conf/model` holds the values.

    Raises ValueError, worded as `field = value: why; what to do instead`, for a combination that makes no model.
    """

    vocab_size: int
    context_length: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float  # on embeddings, attention weights and both residual branches, as in [G] section 4.1
    norm_position: str  # "post": norm(x + f(x)), [A] and [G]; "pre": x + f(norm(x)) and a final norm, GPT-2
    norm: str
    positions: str
    activation: str
    bias: bool  # in linear layers and norms; the head never has one
    tied_head: bool  # the output head is the token embedding, [G] equation 2
    qk_norm: bool  # normalise queries and keys per head before they meet, both by one norm
    conv_width: int  # positions before each one that are mixed into what attention and MLP see; 0: none

    def __post_init__(self) -> None:
        for field in ("vocab_size", "context_length", "n_layer", "n_head", "n_embd"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} = {getattr(self, field)}: must be at least 1; set a positive number")
        if self.n_embd % self.n_head:
            fitting = [h for h in range(1, min(self.n_embd, 64) + 1) if self.n_embd % h == 0]
            raise ValueError(f"n_head = {self.n_head}: n_embd = {self.n_embd} is not divisible by it; try one of {fitting}")
        if self.conv_width < 0:
            raise ValueError(f"conv_width = {self.conv_width}: must not be negative; set 0 for none")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: a share of activations; set it to at least 0 and below 1")
        for field, choices in CHOICES.items():
            if getattr(self, field) not in choices:
                raise ValueError(f"{field} = {getattr(self, field)}: unknown; choose one of {', '.join(choices)}")
        if self.positions == "rotary" and self.head_size % 2:
            raise ValueError(
                f"positions = rotary: rotates pairs, and the head size n_embd / n_head = {self.head_size} is odd; "
                "choose an n_head that makes it even, or positions=learned"
            )

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head


class Dropout(nn.Module):
    """Zeroes each element with probability p while training and scales the rest to keep the mean.

    On a CPU one byte decides one element, so p is rounded to 1/256, and one 64-bit draw serves eight: `nn.Dropout` draws a
    number for each element, which takes longer than the attention that it is applied to.
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


def make_norm(config: GPTConfig, size: int) -> nn.Module:
    if config.norm == "rmsnorm":
        return nn.RMSNorm(size, eps=1e-5)
    return nn.LayerNorm(size, bias=config.bias)


def attention(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module) -> tuple[Tensor, Tensor]:
    """Causal scaled dot-product attention, [A] equation 1: softmax(q k' / sqrt(D)) v.

    Args: q (B, H, T, D); k and v (B, H, S, D), whose last T positions are those of q.
    Returns: the mixed values (B, H, T, D) and the weights (B, H, T, S), each row of which sums to 1.
    """
    T, S = q.size(-2), k.size(-2)
    scores = (q / math.sqrt(q.size(-1))) @ k.transpose(-2, -1)  # (B, H, T, S)
    future = torch.ones(T, S, dtype=torch.bool, device=q.device).triu(S - T + 1)
    weights = scores.masked_fill(future, float("-inf")).softmax(dim=-1)
    return dropout(weights) @ v, weights


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, dropout: nn.Module, size: int = 128) -> Tensor:
    """`attention` for `size` positions of q at a time, so that scores of the future are mostly not computed at all."""
    T, S = q.size(-2), k.size(-2)
    blocks = []
    for start in range(0, T, size):
        end = min(start + size, T)
        seen = S - T + end
        blocks.append(attention(q[..., start:end, :], k[..., :seen, :], v[..., :seen, :], dropout)[0])
    return torch.cat(blocks, dim=-2)


def rotary_table(context_length: int, head_size: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines (T, D) of the angles by which `rotate` turns each pair (Su et al. 2021, section 3.2)."""
    frequency = 10000.0 ** (-torch.arange(0, head_size, 2) / head_size)  # (D / 2)
    angle = torch.arange(context_length)[:, None] * frequency
    return torch.cat((angle.cos(), angle.cos()), dim=-1), torch.cat((-angle.sin(), angle.sin()), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (a, b) = (x_i, x_{i + D/2}) by its position's angle, so that q . k depends on the distance alone.

    Args: x (B, H, T, D); cos and sin (T, D). Returns (a cos - b sin, b cos + a sin): the first half of the sines is negative.
    """
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, dims=-1), sin)


class Cache:
    """What a model keeps of the positions that it has seen, so that sampling need not recompute them.

    Each part of the model keeps its own under itself. All is written in place, so not for training.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.length = 0  # positions held
        self.kept: dict[nn.Module, Tensor] = {}

    def extend(self, part: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values (B, H, T, D) behind those held; return all of them (B, H, S, D), without copying them."""
        if part not in self.kept:
            self.kept[part] = k.new_empty(2, *k.shape[:2], self.capacity, k.size(-1))
        keys, values = self.kept[part]
        end = self.length + k.size(-2)
        keys[:, :, self.length : end], values[:, :, self.length : end] = k, v
        return keys[:, :, :end], values[:, :, :end]

    def precede(self, part: nn.Module, x: Tensor, width: int) -> Tensor:
        """x (B, T, C) behind the last `width` positions that this part has given before, zeros at first: (B, width + T, C)."""
        before = self.kept[part] if part in self.kept else x.new_zeros(x.size(0), width, x.size(-1))
        x = torch.cat((before, x), dim=1)
        self.kept[part] = x[:, -width:]
        return x


class Convolution(nn.Module):
    """Adds to each position a mixture of the `width` positions before it, each channel by itself; at first, nothing.

    A causal depthwise convolution, as So et al. 2021, *Primer*, have it behind queries, keys and values. Here it sits before
    attention and MLP: groups of characters meet without an attention head being spent on it.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1, size))

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        width, T = self.weight.size(0), x.size(1)
        padded = F.pad(x, (0, 0, width, 0)) if cache is None else cache.precede(self, x, width)  # (B, width + T, C)
        for start in range(width):
            x = torch.addcmul(x, padded[:, start : start + T], self.weight[start])
        return x


class SelfAttention(nn.Module):
    """Multi-head attention, [A] section 3.2.2: all heads in one product, each looking back at earlier positions only."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.conv = Convolution(config.n_embd, config.conv_width) if config.conv_width else None
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.qk_norm = make_norm(config, config.head_size) if config.qk_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, cache: Cache | None) -> Tensor:
        B, T, C = x.shape
        if self.conv is not None:
            x = self.conv(x, cache)
        qkv = self.qkv(x).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        qk, v = self.qk_norm(qkv[:2]), qkv[2]  # (2, B, H, T, D) and (B, H, T, D): q and k are treated alike
        q, k = qk if rotary is None else rotate(qk, *rotary)
        if cache is not None:
            k, v = cache.extend(self, k, v)  # (B, H, S, D)
        y = self.mix(q, k, v)  # (B, H, T, D)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`attention` by the fastest way: torch's kernel, but on a CPU that draws dropout slowly, and it knows no offset."""
        T, S = q.size(-2), k.size(-2)
        p = self.dropout.p if self.training else 0.0
        if (p and q.device.type == "cpu") or 1 < T < S:
            return blockwise_attention(q, k, v, self.dropout)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=T > 1)


class MLP(nn.Module):
    """Position-wise feed-forward network, [A] section 3.3: four times wider inside."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.conv = Convolution(config.n_embd, config.conv_width) if config.conv_width else None
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.activation = config.activation

    def forward(self, x: Tensor, cache: Cache | None) -> Tensor:
        if self.conv is not None:
            x = self.conv(x, cache)
        x = self.fc(x)  # (B, T, 4C)
        if self.activation == "gelu":
            x = F.gelu(x, approximate="tanh")  # the form that [G] uses
        else:
            x = F.relu(x)
            if self.activation == "relu2":
                x = x * x  # So et al. 2021, *Primer*
        return self.proj(x)  # (B, T, C)


class Block(nn.Module):
    """One transformer layer: attention, then MLP, each on a residual branch with dropout at its end."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.pre = config.norm_position == "pre"
        self.norm1, self.attn = make_norm(config, config.n_embd), SelfAttention(config)
        self.norm2, self.mlp = make_norm(config, config.n_embd), MLP(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None, cache: Cache | None) -> Tensor:
        if self.pre:
            x = x + self.dropout(self.attn(self.norm1(x), rotary, cache))
            return x + self.dropout(self.mlp(self.norm2(x), cache))
        x = self.norm1(x + self.dropout(self.attn(x, rotary, cache)))
        return self.norm2(x + self.dropout(self.mlp(x, cache)))


class GPT(nn.Module):
    """Token ids in, scores of the next token out, at every position at once ([G] equation 2)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.n_embd)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.context_length, config.n_embd)
        else:
            cos, sin = rotary_table(config.context_length, config.head_size)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config, config.n_embd) if config.norm_position == "pre" else nn.Identity()
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.tokens.weight
        self.apply(self._init)
        if config.tied_head and config.norm_position == "post":
            # With 0.02, as in [G], such a model starts out sure that each token repeats: its logit is about 0.014 C
            nn.init.normal_(self.tokens.weight, std=1 / config.n_embd)
        for block in self.blocks:  # 2 n_layer branches add up in the residual stream: keep its variance (GPT-2, section 2.3)
            for branch in (block.attn, block.mlp):
                nn.init.normal_(branch.proj.weight, std=0.02 / math.sqrt(2 * config.n_layer))

    @staticmethod
    def _init(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)  # [G] section 4.1
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) for ids (B, T). With a cache, ids continue the positions that the cache holds, which grows by T.

        Raises ValueError if more than context_length positions would be needed.
        """
        start = cache.length if cache is not None else 0
        end = start + ids.size(1)
        if end > self.config.context_length:
            raise ValueError(f"{end} positions are more than context_length = {self.config.context_length}")
        x, rotary = self.tokens(ids), None  # (B, T, C)
        if self.config.positions == "learned":
            x = x + self.positions.weight[start:end]
        else:
            rotary = self.cos[start:end], self.sin[start:end]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rotary, cache)
        if cache is not None:
            cache.length = end
        return self.head(self.norm(x))


def parameter_count(config: GPTConfig) -> int:
    """Trainable numbers in a model of these sizes, a tied head counted once; what `GPT(config)` holds, without building it."""
    C, bias = config.n_embd, config.bias
    norm = lambda size: size * (2 if config.norm == "layernorm" and bias else 1)  # noqa: E731
    block = 12 * C * C + 9 * C * bias + 2 * norm(C) + norm(config.head_size) * config.qk_norm + 2 * config.conv_width * C
    embeddings = config.vocab_size * C * (1 if config.tied_head else 2)
    positions = config.context_length * C * (config.positions == "learned")
    return embeddings + positions + config.n_layer * block + norm(C) * (config.norm_position == "pre")


def flops_per_token(config: GPTConfig) -> int:
    """Multiplications and additions to train on one position, forward and backward: 6 for each weight of a matrix product,
    12 n_layer C T for attention (Chowdhery et al. 2022, *PaLM*, appendix B, which counts what the causal mask throws away)."""
    C = config.n_embd
    weights = 12 * config.n_layer * C * C + config.vocab_size * C
    return 6 * weights + 12 * config.n_layer * C * config.context_length
