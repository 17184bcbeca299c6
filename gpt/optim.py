"""Optimizers from their settings, and the learning rate as a pure function of the step."""

import math

import torch
import torch.nn as nn
from torch.optim import AdamW, Optimizer

from gpt.config import AdamWConfig, MuonConfig, SchedulerConfig
from gpt.muon import CombinedOptimizer, Muon


def lr_multiplier(step: int, max_steps: int, config: SchedulerConfig) -> float:
    """The share of the peak rate at `step`, counted from 0. It rises from above 0 to 1, stays, and falls."""
    warmup = round(config.warmup_ratio * max_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    decay_start = max(warmup, max_steps - round(config.decay_ratio * max_steps))
    if step < decay_start or decay_start == max_steps:
        return 1.0
    progress = min((step - decay_start) / (max_steps - decay_start), 1.0)
    remaining = 1 - progress if config.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * remaining


def build_optimizer(model: nn.Module, config: AdamWConfig, precision: str = "32-true") -> Optimizer:
    """The optimizer of `config` for all parameters of `model`. Its first group runs at `config.lr`.

    With precision "bf16-mixed", Muon's own products are in bfloat16. Parameters and states stay in float32.
    """
    decay = config.weight_decay
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 2}
    in_blocks = [parameter for name, parameter in matrices.items() if name.startswith("blocks.")]
    elsewhere = [parameter for name, parameter in matrices.items() if not name.startswith("blocks.")]
    others = [parameter for parameter in model.parameters() if parameter.ndim != 2]
    decaying = elsewhere if isinstance(config, MuonConfig) else elsewhere + in_blocks
    groups = [{"params": decaying, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    adamw = AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    if not isinstance(config, MuonConfig):
        return adamw
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    muon = Muon(in_blocks, dtype, lr=config.muon_lr, momentum=config.muon_momentum, weight_decay=decay)
    return CombinedOptimizer(adamw, muon)
