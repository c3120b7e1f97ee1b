"""Operations weighed and summed in one go: value and gradients beside the plain formula."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.nets.ops import DARTS, NB201, PNAS, TINY, Shared, add_weighed, build_operation

NAMES = sorted({*NB201, *DARTS, *PNAS, *TINY, "basic_block"} - {"none", "zero"})


def gradients(
    op: nn.Module, x: Tensor, total: Tensor | None, weight: Tensor, weighed: bool
) -> list[Tensor]:
    """The result, then its gradients by the input, the weight, what it is added to, and params."""
    op, x, weight = copy.deepcopy(op), x.clone().requires_grad_(), weight.clone().requires_grad_()
    added = None if total is None else total.clone().requires_grad_()
    if weighed:
        y = add_weighed(added, weight, op, Shared(x))
    else:
        y = weight * op(x) if added is None else added + weight * op(x)
    generator = torch.Generator().manual_seed(1)
    y.backward(torch.randn(y.shape, generator=generator))
    leaves = [x, weight, *([] if added is None else [added]), *op.parameters()]
    buffers = [each.double() for each in op.buffers()]
    return [y.detach(), *(leaf.grad for leaf in leaves), *buffers]


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_weighed_operation_is_the_formula(
    name: str, stride: int, layout: torch.memory_format, added: bool
) -> None:
    torch.manual_seed(0)
    op = build_operation(name, 8, 8, stride).to(memory_format=layout)
    for module in op.modules():
        if isinstance(module, nn.BatchNorm2d):  # as a supernet has them
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_()
    x = torch.randn(4, 8, 8, 8).to(memory_format=layout)
    total = torch.randn_like(op(x)) if added else None
    weight = torch.tensor(0.3)
    there = gradients(op, x, total, weight, weighed=True)
    formula = gradients(op, x, total, weight, weighed=False)
    for one, other in zip(there, formula, strict=True):
        # A bias in front of a batch norm has no gradient but what rounding leaves of it.
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-4)


def test_what_several_operations_read_is_rectified_once() -> None:
    read = Shared(torch.randn(2, 4, 6, 6))
    ops = [build_operation(name, 4, 4) for name in ("nor_conv_1x1", "nor_conv_3x3")]
    seen: list[Tensor] = []
    for op in ops:
        op[1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        add_weighed(None, torch.tensor(0.5), op, read)
    assert seen[0] is seen[1] is read.rectified


def test_one_that_is_looked_at_is_called_itself() -> None:
    op, seen = build_operation("nor_conv_3x3", 4, 4), []
    op.register_forward_hook(lambda *_: seen.append(1))
    add_weighed(None, torch.tensor(0.5), op, Shared(torch.randn(2, 4, 6, 6)))
    op[0].register_forward_hook(lambda *_: seen.append(2))
    add_weighed(None, torch.tensor(0.5), op, Shared(torch.randn(2, 4, 6, 6)))
    assert seen == [1, 2, 1]


def test_the_weight_keeps_no_map_of_its_own() -> None:
    """Beside what the operation itself keeps: its ReLU, and the convolution's output."""
    x = torch.randn(4, 8, 8, 8).to(memory_format=torch.channels_last).requires_grad_()
    op = build_operation("nor_conv_3x3", 8, 8).to(memory_format=torch.channels_last)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor
        return tensor

    weight = torch.tensor(0.5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = add_weighed(None, weight, op, Shared(x))
    assert sum(tensor.numel() == x.numel() for tensor in kept.values()) == 2
    assert y.data_ptr() not in kept
