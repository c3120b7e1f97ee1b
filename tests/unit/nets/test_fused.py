from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.nets import fused, pooling
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.batch_norm import twice_differentiable
from sseg_nase.nets.evolvable import ConvBlock, EvolvableCNN
from sseg_nase.nets.families.resnet.network import ResNetArchitecture
from sseg_nase.nets.families.resnet12.network import ResNet12Architecture
from sseg_nase.nets.fused import norm_act_pool
from sseg_nase.ssl.teacher import batch_statistics
from tests.support.graphs import nodes

SLOPE = 0.1
ACTIVATIONS = (None, "relu", "leaky_relu", "relu6", "hard_swish", "silu", "gelu")
# Fewer than a vector has lanes, as many, and some that blocks of lanes do not divide.
CHANNELS = (1, 16, 20, 5)
FUSED = "_FusedBackward"


def slowly(
    norm: nn.BatchNorm2d,
    x: Tensor,
    shortcut: Tensor | None,
    activation: str | None,
    pool: bool,
    *,
    constant: bool = False,
) -> Tensor:
    """What it all means. `constant`: statistics do not depend on `x`."""
    if norm.training or norm.running_mean is None or norm.running_var is None:
        source = x.detach() if constant else x
        mean, var = source.mean(dim=(0, 2, 3)), source.var(dim=(0, 2, 3), correction=0)
    else:
        mean, var = norm.running_mean, norm.running_var
    y = (x - mean[:, None, None]) / (var + norm.eps).sqrt()[:, None, None]
    if norm.affine:
        y = y * norm.weight[:, None, None] + norm.bias[:, None, None]
    if shortcut is not None:
        y = y + shortcut
    y = {
        None: lambda y: y,
        "relu": F.relu,
        "leaky_relu": lambda y: F.leaky_relu(y, SLOPE),
        "relu6": F.relu6,
        "hard_swish": F.hardswish,
        "silu": F.silu,
        "gelu": F.gelu,
    }[activation](y)
    return F.max_pool2d(y, 2) if pool else y


def quickly(
    norm: nn.Module, x: Tensor, shortcut: Tensor | None, activation: str | None, pool: bool
) -> Tensor:
    return norm_act_pool(
        norm, x, shortcut=shortcut, activation=activation, negative_slope=SLOPE, pool=pool
    )


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A map is channels-last."""
    drawn = torch.randn(*shape, generator=generator(seed), dtype=torch.float64).to(dtype)
    return drawn.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else drawn


def norm_of(channels: int, **options: Any) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, **options)
    with torch.no_grad():
        if norm.affine:  # a third of the weights below 0
            norm.weight.copy_(0.5 + numbers(channels, seed=1))
            norm.bias.copy_(numbers(channels, seed=2))
        if norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(numbers(channels, seed=3))
            norm.running_var.copy_(0.5 + numbers(channels, seed=4).square())
    return norm


def differentiated(outcome: Tensor, tensors: list[Tensor | None], upstream: Tensor) -> list[Tensor]:
    known = [tensor for tensor in tensors if tensor is not None]
    return list(torch.autograd.grad(outcome, known, upstream))


def assert_equal_to_float64(
    norm: nn.BatchNorm2d,
    x: Tensor,
    shortcut: Tensor | None,
    activation: str | None,
    pool: bool,
    error: float,
) -> None:
    exactly = copy.deepcopy(norm).double()
    tensors = [x, norm.weight, norm.bias, shortcut]
    inputs = [None if t is None else t.detach().requires_grad_() for t in tensors]
    doubles = [None if t is None else t.detach().double().requires_grad_() for t in tensors]
    if norm.affine:
        exactly.weight.data, exactly.bias.data = (
            one.detach() for one in doubles[1:3] if one is not None
        )
        doubles[1:3] = exactly.weight, exactly.bias
        inputs[1:3] = norm.weight, norm.bias
    assert inputs[0] is not None
    assert doubles[0] is not None
    found = quickly(norm, inputs[0], inputs[3], activation, pool)
    expected = slowly(exactly, doubles[0], doubles[3], activation, pool)
    assert found.dtype == x.dtype
    upstream = numbers(*found.shape, seed=5, dtype=x.dtype)
    gradients = differentiated(found, inputs, upstream)
    exact = differentiated(expected, doubles, upstream.double())
    # Large parts of the gradients of x and γ may cancel out: their size is what rounding goes by.
    parts = slowly(exactly, doubles[0], doubles[3], activation, pool, constant=True)
    sizes = differentiated(parts, doubles, upstream.double())
    sizes = [one.norm() for one in sizes]
    for number in range(1, 3) if norm.affine else ():
        sizes[number] = max(sizes[number], upstream.double().norm())
    pairs = zip((found, *gradients), (expected, *exact), (expected.norm(), *sizes), strict=True)
    for one, other, size in pairs:
        assert one.shape == other.shape
        assert (one.double() - other).norm() <= error * max(size, other.norm())


# Not a divisor of any of the numbers of options: each occurs with each.
QUICK = 5


@pytest.mark.parametrize("every", [QUICK, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_equals_float64_whatever_the_shape_and_the_options(
    dtype: torch.dtype, error: float, every: int
) -> None:
    product = itertools.product(ACTIVATIONS, *[(False, True)] * 4, CHANNELS)
    options = itertools.islice(product, 0, None, every)
    drawn = generator(0)
    cases = 0
    for activation, shortcut, pool, training, affine, C in options:
        B, H, W = torch.randint(2, 10, (3,), generator=drawn).tolist()
        norm = norm_of(C, affine=affine).train(training)
        x = 1 + 2 * numbers(B, C, H, W, seed=cases, dtype=dtype)
        beside = numbers(B, C, H, W, seed=cases + 1, dtype=dtype) if shortcut else None
        after = activation not in (None, "relu", "leaky_relu")
        if after and pool and dtype == torch.bfloat16:
            continue  # pooled after a rounding, which makes other numbers equal
        assert_equal_to_float64(norm, x, beside, activation, pool, error)
        cases += 1
    assert cases >= 200 // every


@pytest.mark.parametrize("pool", [False, True])
@pytest.mark.parametrize(
    "shape", [(2, 3, 2, 2), (2, 1, 3, 2), (3, 16, 61, 57), (2, 600, 5, 4), (7, 33, 25, 29)], ids=str
)
def test_small_and_large_maps(shape: tuple[int, ...], pool: bool) -> None:
    """Of more than one part, chunk, group of images and row of windows, with rests."""
    norm = norm_of(shape[1])
    x, shortcut = numbers(*shape, seed=6) - 3, numbers(*shape, seed=7)
    assert_equal_to_float64(norm, x, shortcut, "leaky_relu", pool, 1e-6)


def test_one_pixel_of_two_images() -> None:
    for activation in ACTIVATIONS:
        x, shortcut = numbers(2, 5, 1, 1, seed=8), numbers(2, 5, 1, 1, seed=9)
        assert_equal_to_float64(norm_of(5), x, shortcut, activation, False, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_layouts(dtype: torch.dtype) -> None:
    """Of the shortcut and of gradients; such an input is left to torch."""
    x = numbers(3, 16, 6, 6, seed=1, dtype=dtype)
    strided = numbers(3, 32, 6, 6, seed=2, dtype=dtype)[:, ::2]
    norm = norm_of(16)
    for pool in (False, True):
        expected = quickly(norm, x, strided.contiguous(), "relu", pool)
        assert torch.equal(quickly(norm, x, strided, "relu", pool), expected)
        gradients = []
        for upstream in (
            torch.ones_like(expected),
            torch.ones((), dtype=dtype).expand_as(expected),
        ):
            given = x.detach().requires_grad_()
            out = quickly(norm, given, strided, "relu", pool)
            gradients.append(torch.autograd.grad(out, given, upstream)[0])
        assert torch.equal(*gradients)
        rows = quickly(norm, x.contiguous(), strided, "relu", pool)
        torch.testing.assert_close(rows, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("training", "pool"),
    [
        (True, True),
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_the_slopes(
    monkeypatch: pytest.MonkeyPatch, training: bool, pool: bool
) -> None:
    """The kernels themselves in float64, which is otherwise left to torch."""
    monkeypatch.setitem(fused._MEMORY, torch.float64, torch.float64)
    monkeypatch.setitem(pooling._BITS, torch.float64, torch.int64)
    norm = norm_of(3).double().train(training)
    x, shortcut = (numbers(2, 3, 4, 5, seed=seed, dtype=torch.float64) for seed in (1, 2))
    weights = [one.detach().clone() for one in (norm.weight, norm.bias)]
    inputs = [one.requires_grad_() for one in (x, *weights, shortcut)]
    for activation, several in itertools.product(ACTIVATIONS[:-1], (3, 4)):

        def whole(
            x: Tensor,
            weight: Tensor,
            bias: Tensor,
            shortcut: Tensor | None = None,
            activation: str | None = activation,
        ) -> Tensor:
            for name, tensor in (("weight", weight), ("bias", bias)):
                del norm._parameters[name]
                setattr(norm, name, tensor)
            try:
                out = quickly(norm, x, shortcut, activation, pool)
            finally:
                for name in ("weight", "bias"):
                    delattr(norm, name)
                    norm.register_parameter(name, nn.Parameter(weight.detach()))
            assert FUSED in nodes(out)
            return out

        assert torch.autograd.gradcheck(whole, inputs[:several])
        assert torch.autograd.gradgradcheck(whole, inputs[:several])


def test_the_gradients_gradient_is_torchs() -> None:
    for training, activation, pool in itertools.product(
        (False, True), ACTIVATIONS[:-1], (False, True)
    ):
        found = []
        for of in (quickly, fused_off):
            norm = norm_of(6).train(training)
            x, shortcut = (numbers(4, 6, 5, 5, seed=seed).requires_grad_() for seed in (1, 2))
            out = of(norm, x, shortcut, activation, pool)
            inputs = (x, norm.weight, norm.bias, shortcut)
            upstream = numbers(*out.shape, seed=3).requires_grad_()
            first = torch.autograd.grad(out, inputs, upstream, create_graph=True)
            total = sum(one.square().sum() for one in first)
            assert isinstance(total, Tensor)
            second = torch.autograd.grad(total, (upstream, x, norm.weight))
            found.append([*first, *second])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def fused_off_as_told(
    norm: nn.Module, x: Tensor, shortcut: Tensor | None, activation: str | None, pool: bool
) -> Tensor:
    """GELU included."""
    y = fused._in_turn(
        norm, x, shortcut, activation if activation != "gelu" else None, SLOPE, False
    )
    y = F.gelu(y) if activation == "gelu" else y
    return F.max_pool2d(y, 2) if pool else y


def fused_off(
    norm: nn.Module, x: Tensor, shortcut: Tensor | None, activation: str | None, pool: bool
) -> Tensor:
    if activation in fused._KINDS and pool:  # some are not in the order of their inputs
        return F.max_pool2d(fused._in_turn(norm, x, shortcut, activation, SLOPE, False), 2)
    return fused._in_turn(norm, x, shortcut, activation, SLOPE, pool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_repetition_change_nothing(dtype: torch.dtype) -> None:
    shape = (19, 20, 25, 24)
    x, shortcut = (numbers(*shape, seed=seed, dtype=dtype) for seed in (1, 2))
    threads = torch.get_num_threads()
    for activation, pool, beside in itertools.product(
        ("relu", "silu", None), (False, True), (None, shortcut)
    ):
        found = []
        try:
            for count in (1, 2, 3, 3):
                torch.set_num_threads(count)
                norm, given = norm_of(20), x.detach().requires_grad_()
                out = quickly(norm, given, beside, activation, pool)
                upstream = numbers(*out.shape, seed=3, dtype=dtype)
                gradients = torch.autograd.grad(out, (given, norm.weight, norm.bias), upstream)
                found.append([out, *gradients, norm.running_mean, norm.running_var])
        finally:
            torch.set_num_threads(threads)
        for other in found[1:]:
            for one, same in zip(found[0], other, strict=True):
                assert one is not None
                assert same is not None
                assert torch.equal(one, same)


@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": 0.3}, {"momentum": None}, {"momentum": 0.0}, {"track_running_stats": False}],
    ids=str,
)
def test_running_statistics_are_torchs(options: dict[str, Any]) -> None:
    ours, torchs = (norm_of(4, **options) for _ in range(2))
    for seed in (1, 2, 3):
        x = 3 + numbers(5, 4, 3, 3, seed=seed)
        quickly(ours, x, None, "relu", True)
        torchs(x)
    for name, tensor in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor)
    for norm in (ours, torchs):  # as `batch_statistics` and a repeated block have it
        norm.momentum, norm.num_batches_tracked = 0.0, None
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    quickly(ours, x + 1, None, "relu", True)
    ours.momentum, ours.track_running_stats = 0.5, False
    torch.testing.assert_close(quickly(ours, x, None, None, False), torchs(x))
    ours.eval()
    torchs.eval()
    torch.testing.assert_close(quickly(ours, x, None, None, False), torchs(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in ours.state_dict().items())


def test_running_statistics_of_other_dtypes() -> None:
    exact = norm_of(4)
    for dtype, error in ((torch.float64, 1e-6), (torch.bfloat16, 1e-2)):
        norm = norm_of(4).to(dtype)
        x = 3 + numbers(5, 4, 3, 3, seed=1)
        quickly(norm, x, None, "relu", True)
        nn.BatchNorm2d.forward(exact, x)
        for ours, torchs in (
            (norm.running_mean, exact.running_mean),
            (norm.running_var, exact.running_var),
        ):
            assert ours.dtype == dtype
            torch.testing.assert_close(ours.float(), torchs, rtol=error, atol=error)
        exact = norm_of(4)


def test_what_was_computed_from_running_statistics_knows_that_they_changed() -> None:
    norm, x = norm_of(4).eval(), numbers(5, 4, 3, 3, seed=1)
    earlier = nn.BatchNorm2d.forward(norm, x.clone().requires_grad_())
    quickly(norm.train(), x, None, None, False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        earlier.sum().backward()


def test_extreme_maps_are_no_worse_than_torchs() -> None:
    random = numbers(8, 16, 12, 12, seed=1)
    outlier = random.clone(memory_format=torch.channels_last)
    outlier[0] = 1e4
    maps = [
        torch.full_like(random, 3.7),
        torch.zeros_like(random),
        random + 1e4,
        random * 1e-4 - 1e4,
        random * 1e15,
        random * 1e-15,
        outlier,
    ]
    for x, activation in itertools.product(maps, (None, "relu")):
        errors = []
        for of in (quickly, fused_off, slowly):
            exact = of is slowly
            norm, given = (
                norm_of(16),
                x.double() if exact else x.clone(memory_format=torch.channels_last),
            )
            norm = norm.double() if exact else norm
            out = of(norm, given.requires_grad_(), None, activation, False)
            upstream = numbers(*out.shape, seed=2).to(out.dtype)
            errors.append(
                [out, *torch.autograd.grad(out, (given, norm.weight, norm.bias), upstream)]
            )
        for ours, torchs, exact_one in zip(*errors, strict=True):
            worst = (torchs.double() - exact_one).norm()
            assert (ours.double() - exact_one).norm() <= 1.5 * worst + 1e-6 * exact_one.norm()


@pytest.mark.parametrize("pool", [False, True])
def test_far_from_zero_gradients_are_exact_still(pool: bool) -> None:
    """What float32 cannot hold of a mean is taken into account; gradients do not cancel out."""
    x, norm = 1e4 + numbers(8, 16, 12, 12, seed=1), norm_of(16)
    inputs = [x.requires_grad_(), norm.weight, norm.bias]
    out = quickly(norm, x, None, None, pool)
    upstream = numbers(*out.shape, seed=2).abs()
    found = torch.autograd.grad(out, inputs, upstream)
    exactly = copy.deepcopy(norm).double()
    doubles = [x.detach().double().requires_grad_(), exactly.weight, exactly.bias]
    exact = torch.autograd.grad(
        slowly(exactly, doubles[0], None, None, pool), doubles, upstream.double()
    )
    for one, other in zip(found, exact, strict=True):
        assert (one.double() - other).norm() <= 2e-6 * other.norm(), (one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ACTIVATIONS[:-1])
def test_no_number_and_infinity_go_where_torch_takes_them(
    dtype: torch.dtype, activation: str | None
) -> None:
    inf, nan = float("inf"), float("nan")
    norm = nn.BatchNorm2d(2).eval()
    x = numbers(6, 2, 2, 2, seed=1, dtype=dtype)
    windows = [
        [nan, 1, 2, 3],
        [1, nan, 2, 3],
        [1, 2, 3, nan],
        [-inf] * 4,
        [-inf, 1, inf, 2],
        [nan] * 4,
    ]
    x[:, 0] = torch.tensor(windows, dtype=dtype).view(6, 2, 2)
    for pool in (False, True):
        found, expected = (of(norm, x, None, activation, pool) for of in (quickly, fused_off))
        torch.testing.assert_close(found, expected, equal_nan=True)
    norm.train()
    out = quickly(norm, x, None, activation, True)
    assert out[:, 0].isnan().all()
    assert out[:, 1].isfinite().all()


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    for pool, activation, wanted in itertools.product(
        (False, True), (None, "relu"), itertools.product((False, True), repeat=4)
    ):
        for training in (False, True):
            norm = norm_of(4).train(training)
            tensors = [
                numbers(3, 4, 4, 4, seed=1),
                norm.weight,
                norm.bias,
                numbers(3, 4, 4, 4, seed=2),
            ]
            for tensor, asked in zip(tensors, wanted, strict=True):
                tensor.requires_grad_(asked)
            out = quickly(norm, tensors[0], tensors[3], activation, pool)
            assert out.requires_grad == any(wanted)
            if not any(wanted):
                continue
            out.square().sum().backward()
            found = [tensor.grad for tensor in tensors]
            for tensor in tensors:
                tensor.grad = None
            fused_off(norm, tensors[0], tensors[3], activation, pool).square().sum().backward()
            for ours, tensor in zip(found, tensors, strict=True):
                if tensor.grad is None:
                    assert ours is None
                else:
                    torch.testing.assert_close(ours, tensor.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("activation", "pool", "shortcut", "maps"),
    [
        ("relu", True, False, 1),
        ("relu", True, True, 1),
        (None, False, True, 1),
        ("relu", False, False, 1),
        ("relu", False, True, 2),
        ("silu", False, False, 1),
        ("silu", False, True, 2),
    ],
)
def test_keeps_no_map_that_can_be_computed_again(
    activation: str, pool: bool, shortcut: bool, maps: int
) -> None:
    x = numbers(2, 16, 32, 32, seed=1, dtype=torch.bfloat16).requires_grad_()
    beside = numbers(2, 16, 32, 32, seed=2, dtype=torch.bfloat16) if shortcut else None
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        quickly(norm_of(16), x, beside, activation, pool)
    found = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    places = x.numel() // 4 if pool else 0
    of_channels = 2 if activation == "silu" else 1  # γ, and β for the gradient's gradient
    assert found == maps * x.numel() * 2 + places + of_channels * 16 * 4


# -- where it is used, and where torch's operators are ---------------------------------------------


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture.seed((4, 6), resolution=16),
        Architecture.seed((4, 6, 3), resolution=16, residual=True, activation="gelu"),
        ResNet12Architecture("resnet12_quarter", 16, widths=(4, 6)),
        ResNetArchitecture("resnet18", 16, stem="small"),
        ResNetArchitecture("resnet50", 32),
    ],
    ids=lambda a: a.name,
)
def test_every_norm_of_a_network_is_fused(architecture: Any) -> None:
    network: Backbone
    if isinstance(architecture, Architecture):
        network = EvolvableCNN(architecture, generator=generator(1))
    else:
        network = architecture.network(generator(1))
    network = network.to(memory_format=torch.channels_last)
    side = architecture.resolution
    names = nodes(network(numbers(4, 3, side, side, seed=1)))
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in network.modules())
    assert names.count(FUSED) == norms
    assert not any("BatchNorm" in name or "Relu" in name for name in names)
    with twice_differentiable(network):
        assert FUSED not in nodes(network(numbers(4, 3, side, side, seed=1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_gradients_nothing_is_kept_for_them(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """A teacher with the batch's statistics or its own, and networks whose norms are folded."""
    places: list[Tensor | None] = []
    forward = fused._forward

    def watched(*arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        out, which = forward(*arguments, **options)
        places.append(which)
        return out, which

    network = EvolvableCNN(Architecture.seed((4, 6, 20), resolution=16), generator=generator(1))
    network = network.to(memory_format=torch.channels_last)
    folded = network.for_inference()
    images = numbers(4, 3, 16, 16, seed=1)
    monkeypatch.setattr(fused, "_forward", watched)
    with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16), torch.no_grad():
        with batch_statistics(network):
            network(images)
        own, others = network.eval()(images), folded(images)
    assert len(places) == 9
    assert not any(which is not None and which.numel() for which in places)
    torch.testing.assert_close(own, others, rtol=1e-2, atol=1e-2)
    assert folded(images).requires_grad  # one after the other, which keeps less without a norm
    assert len(places) == 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_a_norm_it_is_torchs_bit_by_bit(dtype: torch.dtype) -> None:
    x, shortcut = (numbers(3, 20, 7, 6, seed=seed, dtype=dtype) for seed in (1, 2))
    for activation, pool, beside in itertools.product(ACTIVATIONS, (False, True), (None, shortcut)):
        found, expected = (
            of(nn.Identity(), x, beside, activation, pool) for of in (quickly, fused_off_as_told)
        )
        if dtype == torch.bfloat16 and beside is not None and activation not in (None, "relu"):
            torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)  # is rounded twice
        elif activation in ("hard_swish", "silu"):  # whose steps are others
            error = 1e-6 if dtype == torch.float32 else 1e-2
            torch.testing.assert_close(found, expected, rtol=error, atol=error)
        else:
            assert torch.equal(found, expected)


def left_to_torch(norm: nn.BatchNorm2d, x: Tensor, **options: Any) -> bool:
    given = x.detach().requires_grad_()
    out = norm_act_pool(norm, given, activation="relu", pool=True, **options)
    torch.testing.assert_close(out, F.relu(F.max_pool2d(nn.BatchNorm2d.forward(norm, given), 2)))
    return FUSED not in nodes(out)


class Other(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)


def hooked(add: Callable[[nn.Module, Callable[..., Any]], Any]) -> nn.BatchNorm2d:
    norm = norm_of(4)
    add(norm, lambda *_: None)
    return norm


def test_what_is_not_written_here_is_torchs() -> None:
    x = numbers(3, 4, 4, 4, seed=1)
    assert not left_to_torch(norm_of(4), x)
    assert left_to_torch(norm_of(4), x.contiguous())
    assert left_to_torch(norm_of(4).double(), x.double())
    assert left_to_torch(Other(4), x)
    for add in (
        nn.Module.register_forward_hook,
        nn.Module.register_forward_pre_hook,
        nn.Module.register_full_backward_hook,
        nn.Module.register_full_backward_pre_hook,
    ):
        assert left_to_torch(hooked(add), x)
    with torch.device("meta"):
        out = norm_act_pool(nn.BatchNorm2d(4), torch.empty(3, 4, 4, 4), activation="relu")
    assert out.is_meta
    still = norm_of(4).eval()
    slope = torch.func.grad(lambda x: norm_act_pool(still, x).square().sum())(x)
    assert slope.shape == x.shape
    mixed = norm_act_pool(norm_of(4), x.bfloat16(), shortcut=x)
    assert mixed.dtype == torch.float32


def test_mistakes_are_torchs() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_act_pool(nn.BatchNorm2d(4), numbers(1, 4, 1, 1, seed=1))
    with pytest.raises(RuntimeError, match="running_mean should contain"):
        norm_act_pool(nn.BatchNorm2d(4), numbers(2, 5, 2, 2, seed=1))
    with pytest.raises(RuntimeError, match="must match the size"):
        norm_act_pool(
            nn.BatchNorm2d(4), numbers(2, 4, 4, 4, seed=1), shortcut=numbers(2, 4, 3, 3, seed=1)
        )
    line = numbers(2, 4, 1, 4, seed=1).requires_grad_()
    thin = norm_act_pool(nn.BatchNorm2d(4), line, pool=True)
    assert thin.shape == (2, 4, 0, 2)
    thin.sum().backward()
    assert line.grad is not None
    assert not line.grad.any()


FIRST_STEP = """
import time, torch
from sseg_nase.nets.families.resnet12.network import ResNet12Architecture
network = ResNet12Architecture("resnet12_quarter", 32, widths=(16, 40)).network(None)
network = network.to(memory_format=torch.channels_last)
images = torch.zeros(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
before = time.process_time()
with torch.autocast("cpu", dtype=torch.bfloat16):
    network(images).float().sum().backward()
print(time.process_time() - before)
"""


@pytest.mark.slow
def test_the_first_use_compiles_in_seconds_and_the_next_one_not_at_all(tmp_path: Path) -> None:
    """In seconds of the processor: others may be busy on it."""

    seconds = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_STEP],
            env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_CACHE_DIR": str(tmp_path)},
            check=True,
            capture_output=True,
        )
        seconds.append(float(done.stdout))
    compiling, cached = seconds
    assert compiling <= 20
    assert cached <= compiling / 2


def test_an_export_sees_torchs_operators() -> None:
    block = ConvBlock(3, 4).eval().to(memory_format=torch.channels_last)
    program = torch.export.export(block, (numbers(2, 3, 8, 8, seed=1),))
    called = " ".join(str(node.target) for node in program.graph.nodes)
    for operator in ("batch_norm", "max_pool2d", "relu"):
        assert operator in called
