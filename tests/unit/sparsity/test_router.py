from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.sparsity.router import SparseRouter

CHANNELS = (8, 12, 16)


def network(**options: object) -> EvolvableCNN:
    architecture = Architecture.seed(CHANNELS, resolution=16, **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    net = EvolvableCNN(architecture, generator=generator).double()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "norm" in name and tensor.dim():
                tensor.copy_(
                    0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                )
    return net.eval()


def images() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, 3, 16, 16, generator=generator, dtype=torch.float64)


def losses(net: EvolvableCNN, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    yield net(images().to(dtype)).square().mean()
    yield net(images().to(dtype).flip(3)).square().mean()


def routed(
    net: EvolvableCNN, ratio: float = 0.5, dtype: torch.dtype = torch.float64
) -> SparseRouter:
    router = SparseRouter(ratio, min_channels=2)
    router.update_masks(net, losses(net, dtype))
    return router


def slowly(net: EvolvableCNN, x: Tensor, masks: tuple[Tensor, ...]) -> Tensor:
    """Block after block, setting what is left out to 0."""
    for block, mask in zip(net.blocks, masks, strict=True):
        x = block(x).clone()
        x[:, ~mask] = 0
    return x.mean((2, 3)) if net.architecture.embedding == "average" else x.flatten(1)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("embedding", ["average", "flatten"])
def test_both_paths_are_the_network_with_the_other_channels_at_zero(
    residual: bool, embedding: str
) -> None:
    net = network(residual=residual, embedding=embedding)
    router = routed(net)
    assert router.masks is not None
    x = images()
    positive = router.apply_sparse_forward(net, x)
    negative = router.apply_sparse_forward(net, x, use_negative_path=True)
    assert torch.equal(positive, slowly(net, x, router.masks.positive))
    assert torch.equal(negative, slowly(net, x, router.masks.negative))
    assert not torch.allclose(positive, negative)
    assert not ((positive != 0) & (negative != 0)).any()


def test_where_nothing_is_left_out_the_negative_path_uses_all_channels() -> None:
    net = network()
    router = routed(net, ratio=0.0)
    for negative in (False, True):
        found = router.apply_sparse_forward(net, images(), use_negative_path=negative)
        assert torch.equal(found, net(images()))


def test_the_negative_path_tells_images_apart_though_one_block_alone_loses_channels() -> None:
    net = network()
    router = SparseRouter(0.1, min_channels=4, round_to=4)
    masks = router.update_masks(net, losses(net))
    assert sorted(bool(mask.any()) for mask in masks.negative) == [False, False, True]
    found = router.apply_sparse_forward(net, images(), use_negative_path=True)
    assert torch.equal(found, slowly(net, images(), masks.complement))
    assert (found[0] - found[1]).abs().max() > 1e-6
    block = next(b for b, mask in enumerate(masks.negative) if mask.any())
    assert torch.equal(masks.complement[block], masks.negative[block])


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("embedding", ["average", "flatten"])
@pytest.mark.parametrize("training", [True, False])
def test_pruning_equals_the_positive_path(residual: bool, embedding: str, training: bool) -> None:
    net = network(residual=residual, embedding=embedding)
    router = routed(net)
    assert router.masks is not None
    kept, params = router.masks.kept, net.architecture.params
    net.train(training)
    masked = router.apply_sparse_forward(copy.deepcopy(net), images())
    mutation = router.prune_permanently(net)
    assert net.architecture == mutation.after
    assert net.architecture.channels == tuple(len(channels) for channels in kept)
    assert sum(p.numel() for p in net.parameters()) == net.architecture.params < params
    columns = torch.tensor(mutation.features.index)
    pruned = net(images())
    assert ((pruned - masked[:, columns]).norm() / masked.norm()).item() <= 1e-10
    lost = torch.ones(masked.shape[1], dtype=torch.bool)
    lost[columns] = False
    assert not masked[:, lost].any()


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("embedding", ["average", "flatten"])
def test_pruning_is_exact_in_float32_after_growth_too(embedding: str, batch_norm: bool) -> None:
    net = network(embedding=embedding, batch_norm=batch_norm)
    net.become(grow(net.architecture, position=2, out_channels=15))
    net.become(widen(net.architecture, 1, channels=19))
    router = routed(net.float(), dtype=torch.float32)
    x = images().float()
    masked = router.apply_sparse_forward(net, x)
    mutation = router.prune_permanently(net)
    assert net.blocks[2].routing is not None
    columns = torch.tensor(mutation.features.index)
    assert ((net(x) - masked[:, columns]).norm() / masked.norm()).item() <= 1e-5


@pytest.mark.parametrize("residual", [True, False])
def test_statistics_say_what_pruning_then_does(residual: bool) -> None:
    net = network(residual=residual)
    router = routed(net, ratio=0.25)
    assert router.masks is not None
    statistics = router.get_statistics()
    assert statistics.channels == CHANNELS
    assert statistics.kept == tuple(len(kept) for kept in router.masks.kept)
    assert sum(CHANNELS) - sum(statistics.kept) == 9
    assert statistics.sparsity == pytest.approx(9 / 36)
    before = count_params(net), count_macs(net, 16)
    assert (statistics.params_before, statistics.macs_before) == before
    router.prune_permanently(net)
    after = count_params(net), count_macs(net, 16)
    assert (statistics.params_after, statistics.macs_after) == after
    assert all(new < old for new, old in zip(after, before, strict=True))


def test_update_masks_uses_the_options() -> None:
    net = network()
    router = SparseRouter(0.5, importance="random", min_channels=4, round_to=4, seed=2)
    first = router.update_masks(net, losses(net))
    assert all(len(kept) % 4 == 0 and len(kept) >= 4 for kept in first.kept)
    assert router.update_masks(net, losses(net)).kept == first.kept
    assert router.update_masks(net, losses(net), remove=0).removed == 0


def test_masks_must_exist_and_belong_to_the_network() -> None:
    net = network()
    router = SparseRouter(0.5)
    with pytest.raises(RuntimeError, match="update_masks first"):
        router.apply_sparse_forward(net, images())
    with pytest.raises(RuntimeError, match="update_masks first"):
        router.prune_permanently(net)
    with pytest.raises(RuntimeError, match="update_masks first"):
        router.get_statistics()
    router.update_masks(net, losses(net))
    net.widen(1)  # its new channels would be lost without a word
    with pytest.raises(RuntimeError, match="update_masks again"):
        router.prune_permanently(net)
    with pytest.raises(RuntimeError, match="update_masks again"):
        router.apply_sparse_forward(net, images())
    router.update_masks(net, losses(net))
    router.prune_permanently(net)
    with pytest.raises(RuntimeError, match="update_masks first"):
        router.get_statistics()
