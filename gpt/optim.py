"""Optimizers from their settings, and the learning rate as a pure function of the step."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch.optim import AdamW, Optimizer

from gpt.muon import CombinedOptimizer, Muon
from gpt.settings import UserError, build, did_you_mean, shorten

LARGEST_LR = 1e6  # far beyond any rate that trains: AdamW changes each weight by about the rate


@dataclass(frozen=True)
class AdamWConfig:
    """`conf/optimizer/adamw.yaml`: Loshchilov and Hutter 2019. Raises ValueError for values outside their range.

    This and every other learning rate is a peak, which the schedule multiplies by at most 1.
    """

    name: str
    lr: float
    betas: tuple[float, float]
    weight_decay: float  # of matrices; norms, biases and convolutions don't decay

    def __post_init__(self) -> None:
        check_lr("lr", self.lr, "1e-3")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas = {list(self.betas)}: must be at least 0 and below 1; set for instance [0.9,0.99]")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay = {self.weight_decay}: must not be negative; set 0 for none")


@dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """`conf/optimizer/muon.yaml`: Muon for the matrices of the blocks, AdamW with the values above for the rest."""

    muon_lr: float
    muon_momentum: float

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lr("muon_lr", self.muon_lr, "0.02")
        if not 0 <= self.muon_momentum < 1:
            raise ValueError(f"muon_momentum = {self.muon_momentum}: must be at least 0 and below 1; set for instance 0.95")


def check_lr(field: str, value: float, example: str) -> None:
    if not 0 < value <= LARGEST_LR:
        raise ValueError(f"{field} = {value}: must be above 0 and at most {LARGEST_LR:g}; set a rate such as {example}")


OPTIMIZERS = {"adamw": AdamWConfig, "muon": MuonConfig}


def optimizer_config(values: Mapping[str, Any]) -> AdamWConfig:
    """The configuration of the optimizer that `values["name"]` names. Raises UserError."""
    name = values.get("name")
    if not isinstance(name, str) or name not in OPTIMIZERS:
        raise UserError(f"optimizer.name = {shorten(name)}: unknown; {did_you_mean(str(name), OPTIMIZERS)}")
    return build(OPTIMIZERS[name], values, "optimizer")


@dataclass(frozen=True)
class SchedulerConfig:
    """`conf/scheduler`: warm-up, plateau and decay, as shares of all steps. Raises ValueError for values that are not shares."""

    shape: str  # of the decay: linear or cosine
    warmup_ratio: float
    decay_ratio: float  # at most what the warm-up leaves
    min_lr_ratio: float  # the rate at the end, as a share of the peak

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"shape = {shorten(self.shape)}: unknown; choose linear or cosine")
        for field in ("warmup_ratio", "decay_ratio", "min_lr_ratio"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} = {getattr(self, field)}: a share; set it between 0 and 1")


def lr_multiplier(step: int, max_steps: int, config: SchedulerConfig) -> float:
    """The share of the peak rate at `step`, counted from 0. It rises to 1 (the first step is above 0), stays, and falls."""
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
    """The optimizer that `config` describes, for all parameters of `model`. Its first group runs at `config.lr`.

    In the training precision "bf16-mixed", Muon's own matrix products are in bfloat16. Parameters and states stay in float32.
    """
    matrices = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim == 2}
    in_blocks = [parameter for name, parameter in matrices.items() if name.startswith("blocks.")]
    elsewhere = [parameter for name, parameter in matrices.items() if not name.startswith("blocks.")]
    decaying = {
        "params": elsewhere if isinstance(config, MuonConfig) else elsewhere + in_blocks,
        "weight_decay": config.weight_decay,
    }
    others = {"params": [parameter for parameter in model.parameters() if parameter.ndim != 2], "weight_decay": 0.0}
    adamw = AdamW([decaying, others], lr=config.lr, betas=config.betas, fused=True)
    if not isinstance(config, MuonConfig):
        return adamw
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    muon = Muon(in_blocks, dtype, lr=config.muon_lr, momentum=config.muon_momentum, weight_decay=config.weight_decay)
    return CombinedOptimizer(adamw, muon)
