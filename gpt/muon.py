"""Muon, an optimizer for matrices, and a way to run it next to AdamW as if the two were one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Closure = Callable[[], Tensor]  # computes the loss and its gradients


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` (Jordan et al. 2024), on a CPU for all matrices of a shape at once, in `dtype`.

    PyTorch orthogonalizes one by one and always in bfloat16, which a CPU without that unit has to emulate: a
    step of 4 layers of width 160 takes 1,444 ms, and 45 ms in float32 (two cores of an AMD EPYC 7003). With
    the unit, bfloat16 is twice as fast as float32 (5 layers: 16 ms against 29, one core of a Xeon with AMX).
    """

    def __init__(self, params: Iterable[Tensor], dtype: torch.dtype = torch.float32, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        if self.param_groups[0]["params"][0].device.type != "cpu":
            return super().step(closure)
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            lists: tuple[list[Tensor], list[Tensor], list[Tensor]] = [], [], []
            self._init_group(group, *lists)
            parameters, gradients, momenta = lists
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov's momentum
            for shape in dict.fromkeys(parameter.shape for parameter in parameters):
                alike = [number for number, parameter in enumerate(parameters) if parameter.shape == shape]
                stacked = torch.stack([updates[number] for number in alike]).to(self.dtype)
                orthogonal = orthogonalize(stacked, group["ns_coefficients"], group["ns_steps"])
                for number, update in zip(alike, orthogonal, strict=True):
                    parameters[number].mul_(1 - group["lr"] * group["weight_decay"])
                    parameters[number].add_(update, alpha=-group["lr"] * max(1, shape[0] / shape[1]) ** 0.5)
        return loss


def orthogonalize(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Move the singular values of matrices x (N, rows, columns) towards 1 and keep their singular vectors.

    Jordan et al. 2024, *Muon*, do it by a Newton-Schulz iteration, in which each step applies the polynomial
    p = a + b g + c g² of the Gram matrix g = x x' to x. Several steps at once take up to a third fewer
    operations. In bfloat16, five at once can round to singular values of ten and more, and two do not.
    """
    if x.size(1) > x.size(2):  # so that the Gram matrix is the smaller one
        return orthogonalize(x.mT, coefficients, steps).mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    at_once = 2 if x.dtype == torch.bfloat16 else steps
    while steps > 0:
        x, steps = newton_schulz(x, coefficients, min(steps, at_once)), steps - at_once
    return x


def newton_schulz(x: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """x (N, rows, columns) after so many steps, at least one, of which only the first needs x itself.

    All p commute with g, so the next Gram matrix is p g p, and the product of all p is applied to x once.
    """
    a, b, c = coefficients
    gram, product = x @ x.mT, None
    for step in range(steps):
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        product = polynomial if product is None else polynomial @ product
        if step < steps - 1:
            gram = polynomial @ gram @ polynomial
    return x if product is None else product @ x


class CombinedOptimizer(Optimizer):
    """Several optimizers as one, with one schedule and one state dict, for Lightning's automatic loop."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self.optimizers = optimizers
        super().__init__([group for optimizer in optimizers for group in optimizer.param_groups], {})
        self._share_state()

    def _share_state(self) -> None:
        """Let the parts work on this optimizer's parameter groups and state, so that there is one of each."""
        groups = iter(self.param_groups)
        for optimizer in self.optimizers:
            optimizer.param_groups = [next(groups) for _ in optimizer.param_groups]
            optimizer.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)  # replaces the groups and the state
        self._share_state()

    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        loss = None if closure is None else torch.enable_grad()(closure)()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss
