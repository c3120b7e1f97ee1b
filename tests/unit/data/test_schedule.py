from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from sseg_nase.config.groups.curriculum import SYNTHETIC_LEVELS
from sseg_nase.data.curriculum.schedule import LevelSchedule, plan_epoch
from sseg_nase.errors import UserError

LEVELS = list(SYNTHETIC_LEVELS)


def schedule(**changes: Any) -> LevelSchedule:
    settings: dict[str, Any] = {
        "levels": LEVELS,
        "progression": True,
        "mixing_ratio": 0.2,
        "max_epochs_per_level": 10,
        "plateau_threshold": 0.01,
        "plateau_window": 2,
        "gap_threshold": 0.5,
    }
    return LevelSchedule(**{**settings, **changes})


def advance(plan: LevelSchedule, to: int) -> None:
    while plan.index < to:
        plan.step(1.0, None)


def test_weights_mix_the_levels_before_evenly() -> None:
    plan = schedule()
    assert plan.weights() == {"BASIC": 1.0}
    advance(plan, 1)
    assert plan.weights() == pytest.approx({"BASIC": 0.2, "TEXTURE": 0.8})
    advance(plan, 3)
    assert plan.level == "ADVERSARIAL"
    assert plan.weights() == pytest.approx(
        {"BASIC": 0.2 / 3, "TEXTURE": 0.2 / 3, "OBJECT": 0.2 / 3, "ADVERSARIAL": 0.8}
    )


def test_without_mixing_the_current_level_stands_alone() -> None:
    plan = schedule(mixing_ratio=0.0)
    advance(plan, 2)
    assert plan.weights() == {"OBJECT": 1.0}


def test_without_progression_all_levels_are_mixed_evenly_for_ever() -> None:
    plan = schedule(progression=False)
    for _ in range(30):
        assert plan.step(1.0, 0.0) is None
    assert plan.index == 0
    assert plan.weights() == dict.fromkeys(LEVELS, 0.25)


def test_plateau_needs_a_full_window_of_the_same_level() -> None:
    plan = schedule()
    assert [plan.step(1.0, None) for _ in range(3)] == [None, None, "plateau"]
    assert [plan.step(1.0, None) for _ in range(3)] == [None, None, "plateau"]
    assert plan.level == "OBJECT"


@pytest.mark.parametrize(("gap", "reason"), [(0.4, "plateau"), (0.5, "plateau"), (0.6, None)])
def test_a_large_gap_holds_a_plateau_back(gap: float, reason: str | None) -> None:
    plan = schedule()
    plan.step(1.0, gap)
    plan.step(1.0, gap)
    assert plan.step(1.0, gap) == reason


def test_the_cap_moves_on_from_a_falling_loss() -> None:
    plan = schedule(max_epochs_per_level=4)
    reasons = [plan.step(10.0 - epoch, 9.0) for epoch in range(4)]
    assert reasons == [None, None, None, "cap"]
    assert plan.level == "TEXTURE"


def test_the_threshold_itself_is_no_plateau() -> None:
    plan = schedule(plateau_threshold=0.5)
    assert [plan.step(loss, None) for loss in (2.0, 0.0, 1.5)] == [None, None, None]
    assert plan.step(0.0, None) == "plateau"


def test_the_last_level_is_never_left() -> None:
    plan = schedule()
    advance(plan, 3)
    assert [plan.step(1.0, None) for _ in range(25)] == [None] * 25


def test_resumed_equals_uninterrupted() -> None:
    generator = torch.Generator().manual_seed(3)
    losses = torch.rand(40, generator=generator).mul(0.03).tolist()
    whole = schedule()
    expected = [(whole.step(loss, None), whole.level) for loss in losses]
    assert len({level for _, level in expected}) == 4
    for cut in range(0, 40, 3):
        first, second = schedule(), schedule()
        seen = [(first.step(loss, None), first.level) for loss in losses[:cut]]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        seen += [(second.step(loss, None), second.level) for loss in losses[cut:]]
        assert seen == expected


def test_a_state_of_other_levels_is_refused() -> None:
    with pytest.raises(UserError, match=r"curriculum\.levels"):
        schedule().load_state_dict(schedule(levels=["BASIC", "NATURAL"]).state_dict())


@pytest.mark.parametrize("levels", [[], ["BASIC", "BASIC"]])
def test_levels_must_be_different(levels: list[str]) -> None:
    with pytest.raises(UserError, match=r"curriculum\.levels"):
        schedule(levels=levels)


POOLS = {"BASIC": 50, "TEXTURE": 100, "OBJECT": 200, "ADVERSARIAL": 100, "NATURAL": 77}
WEIGHTS = [
    {"BASIC": 1.0},
    {"ADVERSARIAL": 1.0},
    dict.fromkeys(LEVELS, 0.25),
    {"BASIC": 0.2 / 3, "TEXTURE": 0.2 / 3, "OBJECT": 0.2 / 3, "ADVERSARIAL": 0.8},
    {"BASIC": 0.05, "TEXTURE": 0.05, "OBJECT": 0.05, "ADVERSARIAL": 0.05, "NATURAL": 0.8},
    {"ADVERSARIAL": 0.1, "NATURAL": 0.9},
]


@pytest.mark.parametrize(
    ("weights", "batch_size"),
    [(w, b) for w in WEIGHTS for b in (2, 7, 24, 64) if b % 2 == 0 or set(w) != {"ADVERSARIAL"}],
)
def test_batches_are_full_and_mixed_by_weight(weights: dict[str, float], batch_size: int) -> None:
    images = 1000
    plan = plan_epoch(weights, images, POOLS, batch_size, seed=1, epoch=4)
    assert len(plan) == images // batch_size
    seen = dict.fromkeys(weights, 0)
    for batch in plan:
        assert sum(len(indices) for indices in batch.values()) == batch_size
        for level, indices in batch.items():
            assert indices.dtype == torch.int64
            assert int(indices.min()) >= 0
            assert int(indices.max()) < POOLS[level]
            assert abs(len(indices) - weights[level] * batch_size) <= 3
            seen[level] += len(indices)
    for level, weight in weights.items():
        assert abs(seen[level] - weight * len(plan) * batch_size) <= 2


@pytest.mark.parametrize("batch_size", [24, 25])
def test_twins_stand_side_by_side_in_one_batch(batch_size: int) -> None:
    weights = {"OBJECT": 0.37, "ADVERSARIAL": 0.63}
    for batch in plan_epoch(weights, 500, POOLS, batch_size, seed=0, epoch=0):
        twins = batch["ADVERSARIAL"].view(-1, 2)
        assert (twins[:, 0] % 2 == 0).all()
        assert (twins[:, 1] == twins[:, 0] + 1).all()


@pytest.mark.parametrize("level", ["OBJECT", "ADVERSARIAL"])
def test_a_pool_is_exhausted_before_it_repeats(level: str) -> None:
    pool = POOLS[level]
    plan = plan_epoch({level: 1.0}, 3 * pool, POOLS, 20, seed=5, epoch=2)
    seen = torch.cat([batch[level] for batch in plan]).view(3, pool)
    assert torch.equal(seen.sort(dim=1).values, torch.arange(pool).expand(3, pool))
    assert not torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], torch.arange(pool))


def test_the_plan_depends_on_seed_and_epoch_alone() -> None:
    def plan(seed: int, epoch: int) -> torch.Tensor:
        return plan_epoch({"OBJECT": 1.0}, 200, POOLS, 20, seed=seed, epoch=epoch)[0]["OBJECT"]

    state = torch.get_rng_state()
    assert torch.equal(plan(0, 3), plan(0, 3))
    assert not torch.equal(plan(0, 3), plan(0, 4))
    assert not torch.equal(plan(0, 3), plan(1, 3))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("weights", "images", "pools", "batch_size", "key"),
    [
        ({"BASIC": 1.0}, 10, POOLS, 24, "pretrain.images_per_epoch=10"),
        ({"NATURAL": 1.0}, 100, {"BASIC": 9}, 24, "curriculum.images.NATURAL=0"),
        ({"ADVERSARIAL": 1.0}, 100, {"ADVERSARIAL": 1}, 24, "curriculum.images.ADVERSARIAL=1"),
        ({"ADVERSARIAL": 1.0}, 100, POOLS, 25, "hardware.batch_size=25"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    weights: dict[str, float], images: int, pools: dict[str, int], batch_size: int, key: str
) -> None:
    with pytest.raises(UserError, match=key.replace(".", r"\.")):
        plan_epoch(weights, images, pools, batch_size, seed=0, epoch=0)


def test_a_state_belongs_to_its_levels_in_their_order() -> None:
    def of(*levels: str) -> LevelSchedule:
        return LevelSchedule(
            levels,
            progression=True,
            mixing_ratio=0,
            max_epochs_per_level=3,
            plateau_threshold=0.1,
            plateau_window=2,
            gap_threshold=0,
        )

    one, other = of("BASIC", "TEXTURE"), of("BASIC", "TEXTURE")
    for loss in (5.0, 3.0, 2.0, 7.0):
        one.step(loss, None)
        other.load_state_dict(one.state_dict())
        assert other.state_dict() == one.state_dict()
    assert (other.index, other.level) == (1, "TEXTURE")
    for levels in (("TEXTURE", "BASIC"), ("BASIC", "OBJECT")):
        with pytest.raises(UserError, match=r"the checkpoint has \['BASIC', 'TEXTURE'\]"):
            of(*levels).load_state_dict(one.state_dict())
