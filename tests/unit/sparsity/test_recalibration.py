from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner, ProjectionHead
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.sparsity.recalibration import recalibrate


def learner(*, batch_norm: bool = True) -> Learner:
    """With 2d norms in the backbone, a 1d norm in the head, and statistics that fit nothing."""
    architecture = Architecture.seed([4, 6], resolution=8, residual=True, batch_norm=batch_norm)
    generator = torch.Generator().manual_seed(0)
    net = Learner(
        EvolvableCNN(architecture, generator=generator),
        ProjectionHead(architecture.features, 5, 3, generator=generator),
    )
    for norm in norms(net).values():
        norm.running_mean.fill_(7)
        norm.running_var.fill_(9)
        norm.num_batches_tracked.fill_(40)
    return net


def norms(net: nn.Module) -> dict[str, nn.Module]:
    kinds = nn.BatchNorm1d | nn.BatchNorm2d
    return {name: part for name, part in net.named_modules() if isinstance(part, kinds)}


def batches(count: int = 3) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for number in range(count):
        yield torch.randn(4 + 2 * number, 3, 8, 8, generator=generator) + number


def slowly(net: nn.Module, count: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of what reaches each norm, batch by batch, then averaged."""
    net = copy.deepcopy(net).train()
    seen: dict[str, list[Tensor]] = {name: [] for name in norms(net)}
    for name, norm in norms(net).items():
        norm.register_forward_pre_hook(lambda _, inputs, name=name: seen[name].append(inputs[0]))
    for batch in batches(count):
        net(batch)
    found = {}
    for name, inputs in seen.items():
        flat = [x.detach().transpose(0, 1).flatten(1).double() for x in inputs]
        means = torch.stack([x.mean(1) for x in flat])
        variances = torch.stack([x.var(1, unbiased=True) for x in flat])
        found[name] = means.mean(0), variances.mean(0)
    return found


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_statistics_are_the_plain_average_over_the_batches(count: int, training: bool) -> None:
    net = learner().train(training)
    expected = slowly(net, count)
    assert len(expected) == 3
    parameters = copy.deepcopy(list(net.parameters()))
    recalibrate(net, batches(count))
    for name, norm in norms(net).items():
        mean, variance = expected[name]
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=1e-5)
        assert norm.num_batches_tracked == count
    for before, after in zip(parameters, net.parameters(), strict=True):
        assert torch.equal(before, after)
        assert after.grad is None


def test_momentum_and_every_mode_are_put_back_also_after_an_error() -> None:
    net = learner().eval()
    net.backbone.blocks[0].train()
    net.backbone.blocks[0].norm.momentum = 0.25

    def broken() -> Iterator[Tensor]:
        yield next(batches())
        raise OSError("no more images")

    modes = {name: part.training for name, part in net.named_modules()}
    for expected, run in (
        (nullcontext(), batches()),
        (pytest.raises(OSError, match="no more"), broken()),
    ):
        with expected:
            recalibrate(net, run)
        assert {name: part.training for name, part in net.named_modules()} == modes
        assert [norm.momentum for norm in norms(net).values()] == [0.25, 0.1, 0.1]


def test_statistics_do_not_depend_on_what_they_were() -> None:
    first, second = learner(), learner()
    for norm in norms(second).values():
        norm.reset_running_stats()
    for net in (first, second):
        net.backbone.gradient_checkpointing = net is second
        recalibrate(net, batches())
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_without_batches_nothing_is_changed() -> None:
    net = learner()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate(net, [])
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_without_norms_there_is_nothing_to_do() -> None:
    net = learner(batch_norm=False).backbone
    before = copy.deepcopy(net.state_dict())
    recalibrate(net, batches())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_after_pruning_eval_mode_meets_train_mode_again() -> None:
    net = learner().backbone
    batch = next(batches(1))
    recalibrate(net, [batch])
    # Without channels 1 and 2 in between, what reaches the second norm is another distribution.
    net.become(prune(net.architecture, [[0, 3], range(6)]))

    def gap() -> float:
        with torch.no_grad():
            trained = copy.deepcopy(net).train()(batch)
            return (net.eval()(batch) - trained).abs().max().item()

    before = gap()
    recalibrate(net, [batch])
    assert gap() < 0.1 * before
