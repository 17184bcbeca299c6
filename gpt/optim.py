"""Parameter groups, optimizers, and the learning rate as a pure function of the step."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import AdamW, Optimizer

from gpt.settings import UserError, build, did_you_mean


@dataclass(frozen=True)
class AdamWConfig:
    """`conf/optimizer/adamw.yaml`: Loshchilov and Hutter 2019. Raises ValueError for values outside their range."""

    name: str
    lr: float  # peak, as all rates here: the schedule multiplies it
    betas: tuple[float, float]
    weight_decay: float  # on matrices, not on norms, biases and convolutions

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr = {self.lr}: must be above 0; set a learning rate such as 1e-3")
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
        if self.muon_lr <= 0:
            raise ValueError(f"muon_lr = {self.muon_lr}: must be above 0; set a learning rate such as 0.02")
        if not 0 <= self.muon_momentum < 1:
            raise ValueError(f"muon_momentum = {self.muon_momentum}: must be at least 0 and below 1; set for instance 0.95")


OPTIMIZERS = {"adamw": AdamWConfig, "muon": MuonConfig}


def optimizer_config(values: Mapping[str, Any]) -> AdamWConfig:
    """The config of the optimizer that `values` name. Raises UserError."""
    name = values.get("name")
    if name not in OPTIMIZERS:
        raise UserError(f"optimizer.name = {name}: unknown; {did_you_mean(str(name), OPTIMIZERS)}")
    return build(OPTIMIZERS[name], values, "optimizer")


@dataclass(frozen=True)
class SchedulerConfig:
    """`conf/scheduler`: warm-up, plateau, decay, each as a share of all steps. Raises ValueError for shares that don't fit."""

    shape: str  # of the decay: linear or cosine
    warmup_ratio: float
    decay_ratio: float  # what warm-up leaves of it
    min_lr_ratio: float  # the rate at the end, as a share of the peak

    def __post_init__(self) -> None:
        if self.shape not in ("linear", "cosine"):
            raise ValueError(f"shape = {self.shape}: unknown; choose linear or cosine")
        for field in ("warmup_ratio", "decay_ratio", "min_lr_ratio"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} = {getattr(self, field)}: a share; set it between 0 and 1")


def lr_multiplier(step: int, max_steps: int, config: SchedulerConfig) -> float:
    """What the peak rate is multiplied by at `step`, counted from 0: rises to 1 (the first step is above 0), stays, falls."""
    warmup = round(config.warmup_ratio * max_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    start = max(warmup, max_steps - round(config.decay_ratio * max_steps))
    if step < start or start == max_steps:
        return 1.0
    progress = min((step - start) / (max_steps - start), 1.0)
    left = 1 - progress if config.shape == "linear" else (1 + math.cos(math.pi * progress)) / 2
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * left


def build_optimizer(model: nn.Module, config: AdamWConfig) -> Optimizer:
    """The optimizer that `config` describes, over all parameters of `model`; the first group runs at `config.lr`."""
    blocks, matrices, vectors = [], [], []
    for name, parameter in model.named_parameters():
        (vectors if parameter.ndim != 2 else blocks if name.startswith("blocks.") else matrices).append(parameter)
    rest = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if isinstance(config, MuonConfig):
        muon = Muon(blocks, lr=config.muon_lr, momentum=config.muon_momentum, weight_decay=config.weight_decay)
        return CombinedOptimizer(AdamW(rest, lr=config.lr, betas=config.betas, fused=True), muon)
    rest[0]["params"] += blocks
    return AdamW(rest, lr=config.lr, betas=config.betas, fused=True)


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, with its Newton-Schulz iteration in float32 on a CPU.

    torch iterates in bfloat16, which a CPU without that unit emulates: 30 times slower than float32 (AMD EPYC 7003, two
    cores, 4 layers 160 wide: 1,444 ms a step against 45).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        if self.param_groups[0]["params"][0].device.type != "cpu":
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters, gradients, momenta = [], [], []
            self._init_group(group, parameters, gradients, momenta)
            for parameter, gradient, momentum in zip(parameters, gradients, momenta, strict=True):
                momentum.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(momentum, group["momentum"])  # Nesterov
                update = orthogonalize(update, group["ns_coefficients"], group["ns_steps"])
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)
        return loss


def orthogonalize(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Move the singular values of a matrix towards 1 and keep its directions (Jordan et al. 2024, *Muon*: Newton-Schulz).

    One step is x <- p x with the polynomial p = a + b g + c g g in the smaller Gram matrix g = x x'. All such p and g commute,
    so g is carried along as p g p, and x itself is touched twice instead of twice a step: a third less work here.
    """
    if x.size(0) > x.size(1):
        return orthogonalize(x.T, coefficients, steps).T
    a, b, c = coefficients
    x = x / x.norm().clamp(min=1e-7)
    gram, product = x @ x.T, None
    for step in range(steps):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial if product is None else polynomial @ product
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    return x if product is None else product @ x


class CombinedOptimizer(Optimizer):
    """Several optimizers as one, so that one schedule, one state dict and Lightning's automatic loop serve them all."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts work on this optimizer's groups and state: there is one of each."""
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)  # makes new groups and a new state
        self._share()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss
