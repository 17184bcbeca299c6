import copy
import math

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from conftest import make_model
from gpt.optim import AdamWConfig, Muon, MuonConfig, SchedulerConfig, build_optimizer, lr_multiplier, orthogonalize

ADAMW = AdamWConfig(name="adamw", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
MUON = MuonConfig(name="muon", lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, muon_lr=0.02, muon_momentum=0.95)
CONFIGS = pytest.mark.parametrize("config", [ADAMW, MUON], ids=["adamw", "muon"])


def schedule(shape, warmup, decay, floor, steps=100):
    config = SchedulerConfig(shape=shape, warmup_ratio=warmup, decay_ratio=decay, min_lr_ratio=floor)
    return [lr_multiplier(step, steps, config) for step in range(steps + 1)]


def test_linear_schedule_rises_stays_and_falls():
    rates = schedule("linear", 0.1, 0.4, 0.0)
    assert rates[0] == pytest.approx(1 / 11)  # the first step is not lost
    assert rates[9] == pytest.approx(10 / 11)
    assert rates[10:61] == [1.0] * 51
    assert rates[80] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_cosine_schedule_ends_at_its_floor():
    rates = schedule("cosine", 0.1, 1.0, 0.1)
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.1 + 0.9 / 2)
    assert rates[100] == pytest.approx(0.1)
    assert rates[32] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 22 / 90)) / 2)


def test_constant_schedule():
    assert schedule("linear", 0.0, 0.0, 1.0) == [1.0] * 101


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_schedule_fits_any_length(steps):
    assert all(0 < rate <= 1 for rate in schedule("linear", 0.02, 0.6, 0.0, steps)[:-1])


@CONFIGS
def test_every_parameter_is_in_one_group_and_matrices_alone_decay(config):
    model = make_model("gpt2")
    optimizer = build_optimizer(model, config)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in model.parameters()}
    assert len(grouped) == len(list(model.parameters()))
    for group in optimizer.param_groups:
        assert {p.ndim >= 2 for p in group["params"]} == {group["weight_decay"] > 0}
    if config is MUON:
        blocks = {id(p) for p in model.blocks.parameters() if p.ndim == 2}
        assert {id(p) for p in optimizer.param_groups[-1]["params"]} == blocks


@CONFIGS
def test_one_schedule_drives_all_groups(config):
    model = make_model()
    optimizer = build_optimizer(model, config)
    peaks = [group["lr"] for group in optimizer.param_groups]
    assert peaks[0] == config.lr
    schedule = LambdaLR(optimizer, lambda step: 0.25 if step == 0 else 0.0)
    assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(peak / 4) for peak in peaks]
    schedule.step()
    before = [p.clone() for p in model.parameters()]
    steps(model, optimizer, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))  # at a rate of 0 nothing moves


def steps(model, optimizer, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        ids = torch.randint(11, (4, 17), generator=torch.Generator().manual_seed(number))
        torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


@CONFIGS
def test_state_dict_continues_bit_for_bit(config):
    whole = make_model()
    whole_optimizer = build_optimizer(whole, config)
    steps(whole, whole_optimizer, 3)
    resumed = make_model(seed=1)
    resumed.load_state_dict(whole.state_dict())
    optimizer = build_optimizer(resumed, config)
    optimizer.load_state_dict(copy.deepcopy(whole_optimizer.state_dict()))
    steps(whole, whole_optimizer, 3, start=3)
    steps(resumed, optimizer, 3, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_muon_with_adamw_moves_every_parameter_and_adamw_as_alone():
    alone, together = make_model(), make_model()
    rest = lambda model: [p for name, p in model.named_parameters() if not (name.startswith("blocks.") and p.ndim == 2)]  # noqa: E731
    before = [p.clone() for p in together.parameters()]
    steps(together, build_optimizer(together, MUON), 1)
    steps(alone, build_optimizer(alone, ADAMW), 1)
    assert not any(torch.equal(a, b) for a, b in zip(before, together.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(rest(alone), rest(together), strict=True))


@pytest.mark.parametrize("shape", [(24, 24), (96, 24), (24, 96)])
def test_orthogonalize_moves_singular_values_near_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    y = orthogonalize(x, (3.4445, -4.775, 2.0315), 5)
    along = torch.linalg.diagonal(u.T @ y @ v.T)
    assert ((along > 0.3) & (along < 1.4)).all()
    torch.testing.assert_close(y, u @ torch.diag(along) @ v, atol=1e-4, rtol=0)  # directions are kept


@pytest.mark.parametrize("shape", [(24, 24), (96, 24), (24, 96)])
def test_muon_in_float32_is_torchs_up_to_bfloat16(shape):
    def moved(cls):
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(shape, generator=generator)
        parameter = torch.nn.Parameter(start.clone())
        optimizer = cls([parameter], lr=0.02, momentum=0.95, weight_decay=2.0)
        for _ in range(3):
            parameter.grad = torch.randn(shape, generator=generator)
            optimizer.step()
        return parameter.detach() - start

    ours, theirs = moved(Muon), moved(torch.optim.Muon)
    assert (ours - theirs).norm() / theirs.norm() < 0.02


@pytest.mark.parametrize(
    ("field", "value"), [("lr", 0.0), ("betas", (0.9, 1.0)), ("weight_decay", -0.1), ("muon_lr", -1.0), ("muon_momentum", 1.0)]
)
def test_values_outside_their_range_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field} ="):
        MuonConfig(**(vars(MUON) | {field: value}))
