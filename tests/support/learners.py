"""Networks to mutate, with the optimizer's real state, and what must hold of every mutation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sseg_nase.evolution.operators import TrainingState
from sseg_nase.hardware.complexity import count_macs
from sseg_nase.nets.building import described
from sseg_nase.nets.description import Description
from sseg_nase.nets.evolvable import Learner, ProjectionHead
from sseg_nase.nets.maps import NEW, READS_FEATURES, ChannelMap, TensorMap, wired
from sseg_nase.nets.mutation import Mutation

OPTIMIZERS: Mapping[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-3),
    "adam": lambda net: torch.optim.Adam(net.parameters(), lr=1e-3),
    "amsgrad": lambda net: torch.optim.Adam(net.parameters(), lr=1e-3, amsgrad=True),
    "sgd": lambda net: torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9),
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scramble(module: nn.Module, seed: int) -> None:
    """Give norms and biases values that a trained network could have."""
    random_numbers = generator(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if any(part in name for part in ("norm", "bn", "bias")) and tensor.dim():
                noise = torch.rand(tensor.shape, generator=random_numbers, dtype=tensor.dtype)
                tensor.copy_(noise - 0.5 if "bias" in name or "mean" in name else noise + 0.5)


def make_learner(architecture: Description, seed: int) -> Learner:
    backbone = architecture.network(generator(seed))
    head = ProjectionHead(architecture.features, 11, 7, generator=generator(seed + 1))
    learner = Learner(backbone, head).double()
    scramble(learner, seed + 2)
    return learner


def make_images(architecture: Description, seed: int, count: int = 6) -> Tensor:
    shape = (count, 3, architecture.resolution, architecture.resolution)
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def loss_of(learner: Learner, images: Tensor, seed: int = 0) -> Tensor:
    projections = learner(images)[1]
    aim = torch.randn(projections.shape, generator=generator(seed), dtype=projections.dtype)
    return (projections * aim).sum() + projections.square().mean()


def projections_of(
    learner: Learner, images: Tensor, *, training: bool, masks: list[Tensor] | None = None
) -> Tensor:
    """Leaves mode and running statistics as they were."""
    mode = learner.training
    buffers = [(b, b.clone()) for b in learner.buffers()] if training else []
    with torch.no_grad():
        net = learner.train(training).backbone
        features = net(images) if masks is None else net.masked(images, masks)
        projections = learner.head(features)
        for buffer, kept in buffers:
            buffer.copy_(kept)
    learner.train(mode)
    return projections


def relative(changed: Tensor, reference: Tensor) -> float:
    return ((changed - reference).norm() / reference.norm().clamp_min(1e-12)).item()


def snapshot(state: TrainingState) -> TrainingState:
    """A copy that shares no memory."""

    def copied(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v.clone() if isinstance(v, Tensor) else v for k, v in tensors.items()}

    return TrainingState(
        copied(state.student),
        None if state.teacher is None else copied(state.teacher),
        {name: copied(moments) for name, moments in state.moments.items()},
    )


def assert_same(first: TrainingState, second: TrainingState) -> None:
    assert first.student.keys() == second.student.keys()
    assert all(torch.equal(first.student[name], second.student[name]) for name in first.student)
    assert (first.teacher is None) == (second.teacher is None)
    if first.teacher is not None and second.teacher is not None:
        assert all(torch.equal(first.teacher[name], second.teacher[name]) for name in first.teacher)
    assert first.moments.keys() == second.moments.keys()
    for name, moments in first.moments.items():
        for key, value in moments.items():
            other = second.moments[name][key]
            assert torch.equal(value, other) if isinstance(value, Tensor) else value == other


def check_counts(learner: Learner, architecture: Description) -> None:
    """The formulas against the network, which the description alone builds again."""
    backbone = learner.backbone
    assert backbone.architecture == architecture
    assert architecture.params == sum(p.numel() for p in backbone.parameters())
    assert architecture.macs() == count_macs(backbone, architecture.resolution)
    again = described(json.loads(json.dumps(architecture.to_dict()))).network(None)
    shapes = {name: tensor.shape for name, tensor in again.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in backbone.state_dict().items()}


def maps_of(mutation: Mutation, names: Iterable[str]) -> dict[str, TensorMap]:
    """Of a backbone with a head whose first layer reads the features."""
    on_backbone = [name for name in names if not name.startswith("backbone.")]
    return mutation.learner_maps(wired(on_backbone, {"head.fc1.weight": READS_FEATURES}))


def check_moments(mutation: Mutation, state: TrainingState, new: TrainingState) -> None:
    """Bit by bit: survivors as they were, copies a share, steps kept.

    New entries are 0, but second moments the mean of the survivors beside them.
    """
    maps = maps_of(mutation, new.student)
    assert {maps[name].source for name in new.moments} == set(state.moments)
    for name, moments in new.moments.items():
        old = state.moments[maps[name].source]
        assert moments.keys() == old.keys()
        for key, value in moments.items():
            if not isinstance(value, Tensor) or key == "step":
                assert value == old[key], (name, key)
                continue
            expected, source = np.zeros(value.shape), old[key].numpy()
            at = []
            for dim, width in enumerate(value.shape):
                axes = maps[name].axes
                along = axes[dim] if dim < len(axes) else None
                channels = None if along is None else along.channels
                places, sources, copies = _sources(channels, width)
                source = source.take(sources, axis=dim)
                if along is not None and not along.reads:
                    share = copies ** (2 if key.endswith("_sq") else 1)
                    source = source / share.reshape(-1, *[1] * (source.ndim - 1 - dim))
                at.append(places)
            expected[np.ix_(*at)] = source
            kept = np.zeros(value.shape, dtype=bool)
            kept[np.ix_(*at)] = True
            assert np.array_equal(value.numpy()[kept], expected[kept]), (name, key)
            mean = expected[kept].mean() if key.endswith("_sq") else 0
            assert np.allclose(value.numpy()[~kept], mean, rtol=1e-6, atol=0), (name, key)


@lru_cache(maxsize=64)
def _sources(
    channel_map: ChannelMap | None, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions that continue something old, what they continue, and how many share that."""
    index = range(width) if channel_map is None else channel_map.index
    count = Counter(index)
    found = np.array([(j, i, count[i]) for j, i in enumerate(index) if i != NEW])
    return found[:, 0], found[:, 1], found[:, 2]
