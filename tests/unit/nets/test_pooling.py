from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sseg_nase.nets.evolvable import ConvBlock
from sseg_nase.nets.pooling import max_pool2x2

SHAPES = [(3, 16, 8, 8), (2, 12, 7, 5), (1, 1, 2, 2), (5, 3, 21, 84), (2, 44, 3, 2)]


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Few different ones, so that many are equal; both zeros among them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, shape, generator=generator).to(dtype) / 2
    return torch.where(torch.rand(shape, generator=generator) < 0.1, -0.0, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_equals_torch_with_gradients(
    shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format
) -> None:
    x = numbers(shape, dtype).contiguous(memory_format=layout).requires_grad_()
    ours, torchs = max_pool2x2(x), F.max_pool2d(x, 2)
    assert ours.dtype == dtype
    assert torch.equal(ours, torchs)
    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    upstream.requires_grad_()
    (gradient,) = torch.autograd.grad(ours, x, upstream, create_graph=True)
    (expected,) = torch.autograd.grad(torchs, x, upstream, create_graph=True)
    assert torch.equal(gradient, expected)
    again = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    (second,) = torch.autograd.grad(gradient, upstream, again)
    (expected,) = torch.autograd.grad(expected, upstream, again)
    assert torch.equal(second, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_numbers(dtype: torch.dtype) -> None:
    inf, nan, tiny = float("inf"), float("nan"), torch.finfo(dtype).tiny
    large = torch.finfo(dtype).max
    windows = [
        [-inf, -inf, -inf, -inf],
        [-inf, -large, inf, large],
        [-tiny, -0.0, 0.0, tiny],
        [-tiny, -2 * tiny, -1.0, -large],
        [0.0, nan, 1.0, inf],
        [-nan, 0.0, 1.0, 2.0],
    ]
    x = torch.tensor(windows, dtype=dtype).view(6, 1, 2, 2).requires_grad_()
    ours, torchs = max_pool2x2(x), F.max_pool2d(x, 2)
    assert torch.equal(ours.nan_to_num(nan=-7), torchs.nan_to_num(nan=-7))
    assert ours.isnan().flatten().tolist() == [False] * 4 + [True] * 2
    gradients = [torch.autograd.grad(y[:4].sum(), x)[0] for y in (ours, torchs)]
    assert torch.equal(*gradients)


def test_does_not_depend_on_the_number_of_threads() -> None:
    x = torch.randn(19, 5, 6, 6, generator=torch.Generator().manual_seed(2))
    threads = torch.get_num_threads()
    pooled = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            pooled.append(max_pool2x2(x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(pooled[0], other) for other in pooled[1:])


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("residual", [False, True])
def test_a_block_is_what_its_docstring_says(activation: str, residual: bool) -> None:
    block = ConvBlock(4, 4, activation=activation, residual=residual).double()
    x = torch.randn(3, 4, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    act = {"relu": F.relu, "gelu": F.gelu}[activation]
    inner = block.norm(block.conv(act(x))) + x if residual else act(block.norm(block.conv(x)))
    expected = F.max_pool2d(inner, 2)
    found = block(x)
    assert torch.equal(found, expected)
    for parameter in block.parameters():
        gradients = [
            torch.autograd.grad(y.square().sum(), parameter, retain_graph=True)[0]
            for y in (found, expected)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
