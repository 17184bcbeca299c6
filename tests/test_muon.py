import pytest
import torch

from gpt.muon import Muon, newton_schulz, orthogonalize

JORDAN = 3.4445, -4.775, 2.0315
SHAPES = pytest.mark.parametrize("shape", [(24, 24), (96, 24), (24, 96)], ids=["square", "tall", "wide"])


@SHAPES
def test_orthogonalize_moves_singular_values_near_one(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    y = orthogonalize(x[None], JORDAN, 5)[0]
    singular_values = torch.linalg.diagonal(u.T @ y @ v.T)
    assert ((singular_values > 0.3) & (singular_values < 1.4)).all()
    kept = u @ torch.diag(singular_values) @ v  # the singular vectors are
    torch.testing.assert_close(y, kept, atol=1e-4, rtol=0)


def test_orthogonalize_takes_the_steps_of_newton_and_schulz():
    """As in the source: x <- a x + (b g + c g²) x with the Gram matrix g = x x' of each step's own x."""
    batch = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b, c = JORDAN
    expected = batch[2] / batch[2].norm()  # each by itself
    for _ in range(5):
        gram = expected @ expected.T
        expected = a * expected + (b * gram + c * gram @ gram) @ expected
    torch.testing.assert_close(orthogonalize(batch, (a, b, c), 5)[2], expected)


@SHAPES
def test_muon_in_float32_agrees_with_torch_within_bfloat16(shape):
    def total_update(optimizer_class: type) -> torch.Tensor:
        start = torch.randn(shape, generator=(generator := torch.Generator().manual_seed(0)))
        parameter = torch.nn.Parameter(start.clone())
        optimizer = optimizer_class([parameter], lr=0.02, momentum=0.95, weight_decay=2.0)
        for _ in range(3):
            parameter.grad = torch.randn(shape, generator=generator)
            optimizer.step()
        return parameter.detach() - start

    ours, theirs = total_update(Muon), total_update(torch.optim.Muon)
    assert (ours - theirs).norm() / theirs.norm() < 0.02


@SHAPES
@pytest.mark.parametrize("decay", [0.0, -2.5, -4.0])
def test_steps_at_once_are_as_exact_in_bfloat16_as_one_by_one(shape, decay):
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    x = x * torch.logspace(0, decay, shape[1])  # singular values over several powers of ten
    exact, rounded = (
        orthogonalize(x.to(dtype), JORDAN, 5).double() for dtype in (torch.float64, torch.bfloat16)
    )
    by_one = x.bfloat16() / x.bfloat16().norm(dim=(1, 2), keepdim=True)
    for _ in range(5):
        by_one = newton_schulz(by_one, JORDAN, 1)
    error, usual = (rounded - exact).norm(), (by_one.double() - exact).norm()
    assert error < 1.5 * usual
    assert torch.linalg.svdvals(rounded).max() < 1.25


def test_muon_in_bfloat16_moves_matrices_of_several_shapes_as_in_float32():
    updates = {}
    for dtype in (torch.float32, torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        shapes = (24, 24), (96, 24), (24, 24), (24, 96)
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        Muon(parameters, dtype, lr=1.0, weight_decay=0.0).step()
        updates[dtype] = parameters
    for exact, rounded in zip(*updates.values(), strict=True):
        assert 0 < (exact - rounded).norm() / exact.norm() < 0.05


def test_closure_is_called_with_gradients():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([parameter], lr=0.1)

    def closure() -> torch.Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert not torch.equal(parameter.detach(), torch.ones(2, 2))
