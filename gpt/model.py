"""The decoder-only transformer of GPT in plain PyTorch, to be read from top to bottom: `GPT` comes last.

"Step" names a step of derive-gpt-from-scratch.ipynb, which derives the part. Sources, cited as [A] and [G]:
    [A] Vaswani et al. 2017, *Attention Is All You Need*
    [G] Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training*

Shapes, everywhere in this package:
    B batch, T context (positions in the input), C n_embd, H heads, D head size (C / H), V vocabulary,
    S positions that can be attended to (T, or more when earlier keys and values come from a cache)
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from gpt.attention import Attend, Dropout, KVCache, apply_rotary, attention, fastest_attention, rotary_table
from gpt.config import ModelConfig


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """LayerNorm (Ba et al. 2016; step 7) or RMSNorm (Zhang and Sennrich 2019; step 11) of `size` numbers."""
    return nn.RMSNorm(size, eps=1e-5) if config.norm == "rmsnorm" else nn.LayerNorm(size, bias=config.bias)


class CausalConv(nn.Module):
    """Adds to each position a learned mixture of the `width` positions before it, at first zero (step 11).

    A depthwise convolution, which So et al. 2021, *Primer*, section 3, put behind queries, keys and values.
    It stands before attention and MLP, so that neighbouring characters meet without an attention head.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1, size))

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        width, T = self.weight.size(0), x.size(1)
        padded = F.pad(x, (0, 0, width, 0)) if cache is None else cache.prepend_conv_inputs(self, x, width)
        for start in range(width):  # padded: (B, width + T, C)
            x = torch.addcmul(x, padded[:, start : start + T], self.weight[start])
        return x


class SelfAttention(nn.Module):
    """Multi-head attention, [A] section 3.2.2 (step 6): all heads in one product; no position looks ahead.

    `attend` is the function that mixes the values; `replace_attention` exchanges it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.conv = CausalConv(config.n_embd, config.conv_width) if config.conv_width else None
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.qk_norm = make_norm(config, config.head_size) if config.qk_norm else nn.Identity()
        self.dropout = Dropout(config.dropout if config.attention_dropout else 0.0)
        self.attend: Attend = fastest_attention

    def forward(self, x: Tensor, rotary: Tensor | None, cache: KVCache | None) -> Tensor:
        B, T, C = x.shape
        if self.conv is not None:
            x = self.conv(x, cache)
        qkv = self.qkv(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D)
        qk, v = self.qk_norm(qkv[:2]), qkv[2]  # queries and keys are treated alike
        q, k = qk if rotary is None else apply_rotary(qk, *rotary)
        if cache is not None:
            k, v = cache.append(self, k, v)  # (B, H, S, D)
        y = self.attend(q, k, v, self.dropout)  # (B, H, T, D)
        return self.proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    """Position-wise feed-forward network, [A] section 3.3 (step 7), four times wider inside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv = CausalConv(config.n_embd, config.conv_width) if config.conv_width else None
        self.fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.activation = config.activation

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        if self.conv is not None:
            x = self.conv(x, cache)
        x = self.fc(x)  # (B, T, 4C)
        if self.activation == "gelu":
            x = F.gelu(x, approximate="tanh")  # the form that [G] uses
        else:
            x = F.relu(x)
            if self.activation == "relu2":
                x = x * x  # So et al. 2021, *Primer*, section 3
        return self.proj(x)  # (B, T, C)


class Block(nn.Module):
    """One transformer layer: attention, then MLP, each on a residual branch that ends in dropout (step 7)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.norm1, self.attn = make_norm(config, config.n_embd), SelfAttention(config)
        self.norm2, self.mlp = make_norm(config, config.n_embd), MLP(config)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, rotary: Tensor | None, cache: KVCache | None) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attn(self.norm1(x), rotary, cache))
            return x + self.dropout(self.mlp(self.norm2(x), cache))
        x = self.norm1(x + self.dropout(self.attn(x, rotary, cache)))
        return self.norm2(x + self.dropout(self.mlp(x, cache)))


class GPT(nn.Module):
    """Token ids in, scores of the next token out, at every position at once ([G] equation 2; step 8)."""

    rotary: Tensor
    draft: Any = None  # a `gpt.draft.Drafter` of the text that it was trained on, which lets it write faster

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        vocab_size = config.known_vocab_size()
        self.tokens = nn.Embedding(vocab_size, config.n_embd)
        if config.positions == "learned":
            self.positions = nn.Embedding(config.context_length, config.n_embd)
        else:
            rotary = rotary_table(config.context_length, config.head_size)
            self.register_buffer("rotary", rotary, persistent=False)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = make_norm(config, config.n_embd) if config.norm_position == "pre" else nn.Identity()
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        if config.tied_head:
            self.head.weight = self.tokens.weight
        self.init_weights()

    def init_weights(self) -> None:
        """Draw new weights with a standard deviation of 0.02 ([G] section 4.1; step 7), but for two cases."""
        config = self.config
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if config.tied_head and config.norm_position == "post":
            # With 0.02 such a model would begin sure that each token repeats: that logit is about 0.014 C
            nn.init.normal_(self.tokens.weight, std=1 / config.n_embd)
        for module in self.modules():
            if isinstance(module, (SelfAttention, MLP)):
                # 2 n_layer branches add up: keep their variance (GPT-2, section 2.3)
                nn.init.normal_(module.proj.weight, std=0.02 / math.sqrt(2 * config.n_layer))

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) for ids (B, T). If there is a cache, they continue what it holds, and it grows."""
        return self.head(self.activations(ids, cache))

    def activations(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """What the head reads (B, T, C). Raises ValueError for more than context_length positions in all."""
        start = 0 if cache is None else cache.length
        end = start + ids.size(1)
        if end > self.config.context_length:
            raise ValueError(f"{end} positions are more than context_length = {self.config.context_length}")
        x, rotary = self.tokens(ids), None  # (B, T, C)
        if self.config.positions == "learned":
            x = x + self.positions.weight[start:end]
        else:
            rotary = self.rotary[:, start:end]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rotary, cache)
        if cache is not None:
            cache.length = end
        return self.norm(x)


@contextlib.contextmanager
def replace_attention(model: GPT, attend: Attend) -> Iterator[None]:
    """Let all layers of the model mix their values by `attend` inside the block."""
    layers = [module for module in model.modules() if isinstance(module, SelfAttention)]
    before = [layer.attend for layer in layers]
    try:
        for layer in layers:
            layer.attend = attend
        yield
    finally:
        for layer, former in zip(layers, before, strict=True):
            layer.attend = former


def plain_attention(model: GPT) -> contextlib.AbstractContextManager[None]:
    """Let all layers compute attention by its formula inside the block, in operations that any system has."""
    return replace_attention(model, lambda q, k, v, dropout: attention(q, k, v, dropout)[0])


@torch.no_grad()
def attention_weights(model: GPT, ids: Tensor) -> Tensor:
    """How much each position (row) of ids (B, T) takes from each (column), step 12: (n_layer, B, H, T, T)."""
    weights: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout: Dropout) -> Tensor:
        mixed, of_this_layer = attention(q, k, v, dropout)
        weights.append(of_this_layer)
        return mixed

    was_training = model.training
    model.eval()
    try:
        with replace_attention(model, attend):
            model.forward(ids)  # rather than model(ids), which may have been compiled with another `attend`
    finally:
        model.train(was_training)
    return torch.stack(weights)
