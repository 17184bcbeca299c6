import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from conftest import make_model
from gpt.config import AdamWConfig, MuonConfig, SchedulerConfig
from gpt.optim import build_optimizer, lr_multiplier

ADAMW = AdamWConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
MUON = MuonConfig(lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, muon_lr=0.02, muon_momentum=0.95)
CONFIGS = pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])


def rates(shape: str, warmup: float, decay: float, floor: float, steps: int = 100) -> list[float]:
    config = SchedulerConfig(shape=shape, warmup_ratio=warmup, decay_ratio=decay, min_lr_ratio=floor)
    return [lr_multiplier(step, steps, config) for step in range(steps + 1)]


def test_schedules_rise_stay_and_fall_to_their_floor():
    linear, cosine = rates("linear", 0.1, 0.4, 0.0), rates("cosine", 0.1, 1.0, 0.1)
    assert linear[0] == pytest.approx(1 / 11)  # so the first step is not lost
    assert linear[9] == pytest.approx(10 / 11)
    assert linear[10:61] == [1.0] * 51
    assert (linear[80], linear[100]) == (pytest.approx(0.5), 0.0)
    assert [cosine[step] for step in (10, 55, 100)] == [1.0, pytest.approx(0.1 + 0.9 / 2), pytest.approx(0.1)]
    assert cosine[32] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 22 / 90)) / 2)
    assert rates("linear", 0.0, 0.0, 1.0) == [1.0] * 101  # constant


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_schedule_fits_runs_of_any_length(steps):
    assert all(0 < rate <= 1 for rate in rates("linear", 0.02, 0.6, 0.0, steps)[:-1])


@CONFIGS
def test_every_parameter_is_in_one_group_and_only_matrices_decay(config):
    model = make_model("gpt2")
    optimizer = build_optimizer(model, config)
    grouped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in grouped} == {id(parameter) for parameter in model.parameters()}
    assert len(grouped) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] > 0}
    if config is MUON:
        in_blocks = {id(parameter) for parameter in model.blocks.parameters() if parameter.ndim == 2}
        assert {id(parameter) for parameter in optimizer.param_groups[-1]["params"]} == in_blocks


@CONFIGS
def test_one_schedule_drives_all_groups(config):
    model = make_model()
    optimizer = build_optimizer(model, config)
    peaks = [group["lr"] for group in optimizer.param_groups]
    assert peaks[0] == config.lr
    schedule = LambdaLR(optimizer, lambda step: 0.25 if step == 0 else 0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(peak / 4) for peak in peaks]
    take_steps(model, optimizer, 1)
    schedule.step()
    before = [parameter.clone() for parameter in model.parameters()]
    take_steps(model, optimizer, 1)
    # at a rate of 0 nothing moves
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def take_steps(model, optimizer, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        ids = torch.randint(11, (4, 17), generator=torch.Generator().manual_seed(number))
        torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_adamw_next_to_muon_does_what_it_does_alone():
    alone, together = make_model(), make_model()
    before = [parameter.clone() for parameter in together.parameters()]
    take_steps(together, build_optimizer(together, MUON), 1)
    take_steps(alone, build_optimizer(alone, ADAMW), 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, together.parameters(), strict=True))

    def outside(model) -> list[torch.Tensor]:
        return [p for name, p in model.named_parameters() if not (name.startswith("blocks.") and p.ndim == 2)]

    assert all(torch.equal(a, b) for a, b in zip(outside(alone), outside(together), strict=True))
