"""Random networks of every family that tells its axes, through random mutations and real steps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sseg_nase.config.groups.backbone import Planned
from sseg_nase.config.options import names_with
from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    build_learner,
    load_moments,
    named_moments,
)
from sseg_nase.nets.building import configured
from sseg_nase.nets.description import Description
from sseg_nase.nets.families.cnn import CNN
from sseg_nase.nets.families.densenet import DenseNet
from sseg_nase.nets.families.efficientnet import EfficientNet
from sseg_nase.nets.families.enhanced_mlp import EnhancedMLP
from sseg_nase.nets.families.mlp import MLP
from sseg_nase.nets.families.mlp_mixer import MLPMixer
from sseg_nase.nets.families.resnet.network import ResNetArchitecture
from sseg_nase.nets.families.resnet12.network import ResNet12Architecture
from sseg_nase.nets.families.resnet_small import SmallResNet
from sseg_nase.nets.families.shufflenetv2 import ShuffleNetV2
from sseg_nase.nets.families.simple_vit import SimpleViT
from sseg_nase.nets.families.vit.network import ViTArchitecture
from sseg_nase.nets.family import FamilyArchitecture
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.operator import rebuild
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.nets.plan import IMAGE, Plan
from sseg_nase.nets.searched import SearchedArchitecture
from tests.support.learners import (
    OPTIMIZERS,
    assert_same,
    check_counts,
    check_moments,
    loss_of,
    make_images,
    make_learner,
    projections_of,
    relative,
    snapshot,
)

MUTATIONS = 5
EXACT = 1e-8  # float64; batch statistics of a few pixels magnify rounding, a fault is far larger
MASKED = 1e-5  # relative, in float32
WIDEST = 9


def narrow(rng: random.Random, family: FamilyArchitecture) -> FamilyArchitecture:
    """A family of large networks, with few channels in every axis."""
    return family.with_widths({axis: rng.randint(1, 4) for axis in family.axes})


def resnet12(rng: random.Random) -> Description:
    widths = tuple(rng.randint(1, 5) for _ in range(rng.randint(1, 3)))
    return narrow(rng, ResNet12Architecture("resnet12", rng.choice((8, 9)), 3, widths))


def basic(rng: random.Random) -> Description:
    stem = rng.choice(("imagenet", "small"))
    return narrow(rng, ResNetArchitecture("resnet18", 16, 3, stem))


def bottleneck(rng: random.Random) -> Description:
    return narrow(rng, ResNetArchitecture("resnet50", 16, 3, "small"))


def vit(rng: random.Random) -> Description:
    return ViTArchitecture("vit_small", 8, 3, 4, hidden=8, layers=2, heads=2, mlp=rng.randint(2, 6))


def depthwise(rng: random.Random) -> Description:
    """Inverted residuals, depthwise separable convolutions, pooling and sums."""
    plan, wide = Plan(), rng.randint(2, 5)
    last = plan.add("stem.conv", "conv", IMAGE, wide)
    for number in range(rng.randint(2, 3)):
        kind = rng.choice(("mb3_3", "irb_e6", "ds_conv"))
        if rng.random() < 0.5:
            wide = rng.randint(2, 5)
            last = plan.add(f"down{number}", kind, last, wide, 2)
        if rng.random() < 0.7:
            last = plan.add(f"same{number}", rng.choice(("mb3_3", "irb_e6")), last, wide)
        branches = [
            plan.add(f"cell{number}.{place}", op, last, wide)
            for place, op in enumerate(("nor_conv_3x3", "skip_connect", "avg_pool_3x3"))
        ]
        joined = rng.choice(("sum", "concat"))
        out = wide if joined == "sum" else 3 * wide
        last = plan.add(f"cell{number}.out", "norm_relu", branches, out, join=joined)
        wide = out
    return SearchedArchitecture("searched", 8, 3, nodes=tuple(plan.nodes))


def planned(cls: type[Planned], **values: Any) -> Description:
    """What an option describes for images of 8 px."""
    (name,) = names_with(cls)
    return configured(cls(name=name, in_channels=3, imports=None, **values), 8)


def dense(rng: random.Random) -> Description:
    """Concatenations of concatenations, and what is made of them."""
    depths = [rng.randint(1, 3) for _ in range(rng.randint(1, 2))]
    growth, share = rng.randint(1, 3), rng.choice((0.5, 1.0))
    return planned(DenseNet, depths=depths, growth=growth, bottleneck=2, compression=share)


def shuffled(rng: random.Random) -> Description:
    """Splits and shuffles; as one operation they hold fast what they shuffle."""
    if rng.random() < 0.3:
        plan, wide = Plan(), 2 * rng.randint(1, 3)
        last = plan.add("stem", "conv", IMAGE, wide)
        for number, stride in enumerate((1, 2, 1)):
            last = plan.add(f"unit{number}", "shuffle_unit", last, wide, stride)
        plan.add("last", "conv", last, 4, kernel=1)
        return SearchedArchitecture("searched", 8, 3, nodes=tuple(plan.nodes))
    depths = [rng.randint(1, 3), rng.randint(1, 4)]
    channels = [rng.randint(2, 6), rng.randint(4, 8)]
    return planned(ShuffleNetV2, channels=channels, depths=depths, stem=3, last=4, multiplier=1.0)


def squeezed(rng: random.Random) -> Description:
    """Inverted residuals with squeeze and excitation."""
    channels, depths = [rng.randint(2, 4), rng.randint(2, 4)], [rng.randint(1, 2) for _ in range(2)]
    return planned(
        EfficientNet, channels=channels, depths=depths, stem=rng.randint(1, 3), last=4, expansion=2,
        kernel_size=3, width=1.0, depth=1.0, squeeze=0.5, activation="silu",
    )  # fmt: skip


def basic_blocks(rng: random.Random) -> Description:
    channels, depths = [rng.randint(1, 4) for _ in range(2)], [rng.randint(1, 2) for _ in range(2)]
    return planned(
        SmallResNet, channels=channels, depths=depths, kernel_size=3, activation="relu",
        batch_norm=rng.random() < 0.5,
    )  # fmt: skip


def mixer(rng: random.Random) -> Description:
    return planned(
        MLPMixer, patch_size=4, width=3, depth=rng.randint(1, 2), hidden=rng.randint(1, 4),
        mixed=rng.randint(1, 4),
    )  # fmt: skip


def layers(rng: random.Random) -> Description:
    depth = rng.randint(2, 4)
    return planned(
        CNN, channels=[rng.randint(1, 3) for _ in range(depth)], kernel_sizes=[3] * depth,
        activations=rng.choices(("relu", "elu", "selu"), k=depth), skips=[True] * depth,
        batch_norm=rng.random() < 0.5,
    )  # fmt: skip


def attention(rng: random.Random) -> Description:
    return planned(
        SimpleViT, patch_size=4, width=4, depth=rng.randint(1, 2), heads=2, hidden=rng.randint(1, 4)
    )


def units(rng: random.Random) -> Description:
    if rng.random() < 0.5:
        return planned(EnhancedMLP, width=4, hidden=rng.randint(1, 4), depth=2, activation="gelu")
    channels = [rng.randint(1, 5) for _ in range(rng.randint(1, 3))]
    return planned(MLP, channels=channels, activation="relu", batch_norm=False)


FAMILIES: dict[str, Callable[[random.Random], Description]] = {
    "resnet12": resnet12,
    "basic": basic,
    "bottleneck": bottleneck,
    "vit": vit,
    "depthwise": depthwise,
    "dense": dense,
    "shuffled": shuffled,
    "squeezed": squeezed,
    "basic_blocks": basic_blocks,
    "mixer": mixer,
    "layers": layers,
    "attention": attention,
    "units": units,
}
QUICK = [
    ("resnet12", 0),
    ("resnet12", 1),
    ("basic", 0),
    ("bottleneck", 0),
    ("vit", 0),
    ("vit", 1),
    ("depthwise", 1),
    ("dense", 0),
    ("dense", 1),
    ("shuffled", 0),
    ("shuffled", 1),
    ("squeezed", 0),
    ("squeezed", 1),
    ("basic_blocks", 0),
    ("mixer", 0),
    ("layers", 0),
    ("layers", 1),
    ("attention", 0),
    ("units", 0),
    ("units", 1),
]
CASES = [
    pytest.param(family, seed, marks=() if (family, seed) in QUICK else pytest.mark.slow)
    for family in FAMILIES
    for seed in range(50)
]


def drawn(rng: random.Random, before: Description) -> Mutation:
    mode, seed = rng.choice(("duplicate", "zero", "pairs")), rng.randrange(10_000)
    what = rng.choice(("one", "all", "prune"))
    if what == "prune":
        return prune(
            before,
            [
                rng.sample(range(channels), rng.randint(max(1, channels // 2), channels))
                for channels in before.axes.values()
            ],
        )
    if what == "all":
        widths = [channels + rng.randint(0, 2) for channels in before.axes.values()]
        widths[0] += 1
        return widen(before, None, channels=widths, mode=mode, seed=seed)
    axis = rng.choice(list(before.axes))
    channels = before.axes[axis] + rng.randint(1, WIDEST)
    return widen(before, axis, channels=channels, mode=mode, seed=seed)


@pytest.mark.parametrize(("family", "seed"), CASES)
def test_any_sequence_of_mutations_is_exact(family: str, seed: int) -> None:
    rng = random.Random(seed)
    architecture = FAMILIES[family](rng)
    learner, teacher = make_learner(architecture, seed), make_learner(architecture, seed + 50)
    images = make_images(architecture, seed, count=3)
    build_optimizer = OPTIMIZERS[rng.choice(list(OPTIMIZERS))]
    optimizer = build_optimizer(learner)
    for step in range(MUTATIONS):
        loss_of(learner.train(), images, step).backward()
        optimizer.step()
        optimizer.zero_grad()
        state = TrainingState(
            learner.state_dict(), teacher.backbone.state_dict(), named_moments(optimizer, learner)
        )
        before, architecture = snapshot(state), learner.backbone.architecture
        mutation = drawn(rng, architecture)
        after = apply(mutation, state)
        new = build_learner(mutation, after, like=learner)
        follower = build_learner(mutation, after, like=learner)
        assert after.teacher is not None
        follower.backbone.load_state_dict(dict(after.teacher))
        follower.head.load_state_dict(new.head.state_dict())
        teacher.head.load_state_dict(learner.head.state_dict())

        assert_same(state, before)
        check_function(mutation, learner, new, images)
        check_function(mutation, teacher, follower, images)
        check_moments(mutation, state, after)
        check_counts(new, mutation.after)
        target = json.loads(json.dumps(mutation.target))
        assert rebuild(mutation.kind, target, architecture) == mutation

        teacher = follower
        learner, optimizer = new, build_optimizer(new)
        load_moments(optimizer, learner, after.moments)


def check_function(mutation: Mutation, old: object, new: object, images: torch.Tensor) -> None:
    """WIDEN leaves it as it is, PRUNE leaves that of the masked network."""
    masks = list(mutation.kept) if mutation.kind == "PRUNE" else None
    for training in (False, True):
        before = projections_of(old, images, training=training, masks=masks)
        after = projections_of(new, images, training=training)
        assert relative(after, before) <= EXACT, (mutation.kind, mutation.target, training)
