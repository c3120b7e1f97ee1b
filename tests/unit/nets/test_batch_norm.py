from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.nets.batch_norm import batch_norm, twice_differentiable

# One channel and one pixel per image; more numbers than a chunk, with a part of a row at the end.
SHAPES = [(3, 5, 4, 3), (4, 1, 3, 3), (9, 130, 1, 1), (7, 33, 13, 17), (2, 600, 3, 1)]


def numbers(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def norm_of(channels: int, dtype: torch.dtype) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.5 * numbers(channels, seed=1))
        norm.bias.copy_(numbers(channels, seed=2))
    return norm


def outcomes(
    shape: tuple[int, ...], dtype: torch.dtype, *, ours: bool, wide: bool = False
) -> list[Tensor]:
    """The output, its gradients, and those of a sum of all gradients; `wide`: in float64."""
    compute = torch.float64 if wide else dtype
    norm = norm_of(shape[1], torch.promote_types(compute, torch.float32))
    x, upstream, by_x = (
        (shift + numbers(*shape, seed=seed)).to(dtype).to(compute).requires_grad_()
        for seed, shift in ((3, 2), (4, 0), (5, 0))
    )
    by_weight, by_bias = (numbers(shape[1], seed=seed).to(norm.weight) for seed in (6, 7))
    inputs = (x, norm.weight, norm.bias)
    out = batch_norm(norm, x) if ours else norm(x)
    first = torch.autograd.grad(out, inputs, upstream, create_graph=True)
    second = torch.autograd.grad(
        first, (upstream, x, norm.weight), (by_x.detach(), by_weight, by_bias)
    )
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return [out, *first, *second, norm.running_mean, norm.running_var]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float64, 1e-13), (torch.float32, 1e-5), (torch.bfloat16, 8e-3)]
)
def test_equals_torch_to_the_second_gradient(
    shape: tuple[int, ...], dtype: torch.dtype, error: float
) -> None:
    expected = outcomes(shape, dtype, ours=False, wide=True)
    for found, exact in zip(outcomes(shape, dtype, ours=True), expected, strict=True):
        assert (found.double() - exact).norm() <= error * exact.norm().clamp_min(1)


def test_gradients_are_the_slopes() -> None:
    norm = norm_of(3, torch.float64)
    x = numbers(3, 3, 2, 3, seed=8).requires_grad_()

    def normalised(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weights = {"weight": weight, "bias": bias}
        with twice_differentiable(norm):
            out: Tensor = torch.func.functional_call(norm, weights, (x,))
        return out

    inputs = (x, norm.weight.detach().requires_grad_(), norm.bias.detach().requires_grad_())
    assert torch.autograd.gradcheck(normalised, inputs)
    assert torch.autograd.gradgradcheck(normalised, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layout_and_threads_change_nothing(dtype: torch.dtype) -> None:
    shape = (20, 40, 12, 9)
    values = [numbers(*shape, seed=seed).to(dtype) for seed in (1, 2, 3)]
    strided = [numbers(20, 80, 12, 9, seed=seed).to(dtype)[:, ::2] for seed in (1, 2, 3)]
    for one, other in zip(strided, values, strict=True):
        one.copy_(other)

    def second(maps: list[Tensor]) -> list[Tensor]:
        norm = norm_of(shape[1], torch.float32)
        x, upstream, by_x = (one.detach().requires_grad_() for one in maps)
        (first,) = torch.autograd.grad(batch_norm(norm, x), x, upstream, create_graph=True)
        return list(torch.autograd.grad(first, (upstream, x, norm.weight), by_x.detach()))

    last = [one.contiguous(memory_format=torch.channels_last) for one in values]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = second(last)
        for count, maps in ((2, last), (3, last), (1, values), (2, strided)):
            torch.set_num_threads(count)
            for found, exact in zip(second(maps), expected, strict=True):
                # Torch's own sums, of the first gradient, may be in another order.
                error = 2e-2 if dtype == torch.bfloat16 else 1e-5
                torch.testing.assert_close(found, exact, rtol=error, atol=error)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("momentum", [0.3, None])
def test_running_statistics_are_torchs(momentum: float | None) -> None:
    ours, torchs = (nn.BatchNorm2d(4, momentum=momentum) for _ in range(2))
    for seed in (1, 2, 3):
        x = numbers(5, 4, 3, 3, seed=seed).float()
        with twice_differentiable(ours):
            ours(x)
        torchs(x)
    for name, tensor in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    ours.track_running_stats = False
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    batch_norm(ours, x + 1)
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_what_is_not_written_here_is_torchs() -> None:
    x = numbers(5, 4, 3, 3, seed=1).float().requires_grad_()
    still, bare = nn.BatchNorm2d(4).eval(), nn.BatchNorm2d(4, affine=False)
    for norm in (still, bare):
        assert torch.equal(batch_norm(norm, x), norm(x))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(nn.BatchNorm2d(4), x[:1, :, :1, :1])


def test_no_number_and_infinity_stay_what_they_are() -> None:
    norm = norm_of(2, torch.float32)
    x, upstream = (numbers(4, 2, 3, 3, seed=seed).bfloat16().requires_grad_() for seed in (1, 2))
    (first,) = torch.autograd.grad(batch_norm(norm, x), x, upstream, create_graph=True)
    by_x = torch.zeros_like(x)
    by_x[0, 1, 0, 0] = torch.nan
    for found in torch.autograd.grad(first, (upstream, x), by_x):
        assert found[:, 1].isnan().all()
        assert (found[:, 0] == 0).all()


def test_a_module_is_itself_again_afterwards() -> None:
    module = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2)))
    before = [set(vars(part)) for part in module.modules()]
    with twice_differentiable(module):
        assert "forward" in vars(module[0])
    assert [set(vars(part)) for part in module.modules()] == before
