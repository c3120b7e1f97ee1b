from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from sseg_nase.errors import UserError
from sseg_nase.sparsity.importance import Importance, normalized
from sseg_nase.sparsity.masks import (
    ComplementaryMasks,
    channels_to_remove,
    complementary_masks,
    target_sparsity,
    undecided,
)


def drawn(rng: random.Random) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rng.randrange(10_000))
    return [
        rng.choice((0.01, 1.0, 50.0)) * torch.rand(rng.randint(1, 20), generator=generator)
        for _ in range(rng.randint(1, 5))
    ]


@pytest.mark.parametrize("seed", range(60))
def test_any_masks_cover_and_keep_the_least_widths(seed: int) -> None:
    rng = random.Random(seed)
    scores = drawn(rng)
    total = sum(len(block) for block in scores)
    remove = rng.choice((0, 1, total // 3, total - 1, total, 10 * total))
    least, multiple = rng.randint(1, 8), rng.choice((1, 1, 2, 4))
    masks = complementary_masks(scores, remove, min_channels=least, round_to=multiple)
    for block, keep, drop in zip(scores, masks.positive, masks.negative, strict=True):
        assert keep.dtype == drop.dtype == torch.bool
        assert torch.equal(keep, ~drop)
        width, kept = len(block), int(keep.sum())
        assert kept >= min(width, least)
        assert kept == width or kept % multiple == 0
        if 0 < kept < width:  # within a block the least important go first
            assert block[drop].max() <= block[keep].min()
    assert masks.removed <= remove
    assert masks.removed == total - sum(len(kept) for kept in masks.kept)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_without_limits_the_least_important_of_all_blocks_go(seed: int, share: float) -> None:
    scores = drawn(random.Random(seed))
    total = sum(len(block) for block in scores)
    remove = round(share * total)
    masks = complementary_masks(scores, remove, min_channels=1)
    compared = torch.cat(normalized(scores))
    dropped = torch.cat(list(masks.negative))
    expected = torch.zeros(total, dtype=torch.bool)
    expected[compared.argsort(stable=True)[:remove]] = True
    assert masks.removed == min(remove, total - len(scores))
    if all(keep.any() for keep in torch.split(~expected, [len(block) for block in scores])):
        assert torch.equal(dropped, expected)


def test_removing_nothing_and_everything() -> None:
    scores = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 4.0])]
    for remove in (0, -3):
        assert complementary_masks(scores, remove).kept == [[0, 1, 2], [0, 1]]
    assert complementary_masks(scores, 5).kept == [[2], [0]]
    assert complementary_masks(scores, 5, min_channels=2).kept == [[1, 2], [0, 1]]
    assert complementary_masks(scores, 5, min_channels=9).kept == [[0, 1, 2], [0, 1]]


def test_ties_are_broken_by_place() -> None:
    equal = [torch.ones(3), torch.ones(3)]
    assert complementary_masks(equal, 2).kept == [[2], [0, 1, 2]]
    assert complementary_masks(equal, 3).kept == [[2], [1, 2]]


def test_what_one_block_must_keep_another_gives() -> None:
    scores = [torch.tensor([1.0, 1.0, 1.0, 1.0]), torch.tensor([0.1, 0.1, 0.2, 7.0])]
    for least, kept in ((1, [[1, 2, 3], [3]]), (2, [[2, 3], [2, 3]]), (3, [[1, 2, 3], [1, 2, 3]])):
        assert complementary_masks(scores, 4, min_channels=least).kept == kept


def test_two_channels_too_many_for_one_width_do_not_stand_in_the_way_of_four() -> None:
    """Six channels round down to four: those two are least important, but then no more could go."""
    scores = [torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), torch.ones(8)]
    for remove, gone in ((1, [0, 0]), (2, [2, 0]), (3, [2, 0]), (4, [0, 4]), (6, [2, 4])):
        masks = complementary_masks(scores, remove, min_channels=4, round_to=4)
        assert [int(mask.sum()) for mask in masks.negative] == gone


@pytest.mark.parametrize("seed", range(150))
def test_no_choice_of_channels_is_better(seed: int) -> None:
    """Against every choice there is: none removes more, and of those none loses less."""
    rng = random.Random(seed)
    scores = [torch.tensor([rng.randint(0, 9) / 8 for _ in range(rng.randint(1, 5))])]
    scores += [torch.tensor([rng.random() for _ in range(rng.randint(1, 4))])]
    scores += [torch.tensor([50 * rng.random() for _ in range(rng.randint(1, 3))])]
    least, multiple = rng.randint(1, 4), rng.choice((1, 2, 3))
    widths = [len(block) for block in scores]
    remove = rng.randint(0, sum(widths))

    def allowed(drop: tuple[tuple[bool, ...], ...]) -> bool:
        kept = [len(block) - sum(block) for block in drop]
        return sum(widths) - sum(kept) <= remove and all(
            keep == width or (keep >= least and keep % multiple == 0)
            for keep, width in zip(kept, widths, strict=True)
        )

    values = [block.tolist() for block in normalized(scores)]
    best_count, best_loss = 0, 0.0
    every = itertools.product(
        *(list(itertools.product((False, True), repeat=width)) for width in widths)
    )
    for drop in filter(allowed, every):
        count = sum(map(sum, drop))
        loss = sum(
            value
            for block, gone in zip(values, drop, strict=True)
            for value, out in zip(block, gone, strict=True)
            if out
        )
        if count > best_count or (count == best_count and loss < best_loss):
            best_count, best_loss = count, loss
    masks = complementary_masks(scores, remove, min_channels=least, round_to=multiple)
    assert masks.removed == best_count
    lost = sum(
        block[drop].sum().item()
        for block, drop in zip(normalized(scores), masks.negative, strict=True)
    )
    assert lost == pytest.approx(best_loss, rel=1e-5, abs=1e-6)


def test_scores_that_are_no_numbers_are_refused() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="finite"):
            complementary_masks([torch.tensor([1.0, bad])], 1)


def test_widths_round_up() -> None:
    scores = [torch.arange(10.0)]
    kept = [len(complementary_masks(scores, n, round_to=4).kept[0]) for n in range(11)]
    assert kept == [10, 10, 8, 8, 8, 8, 4, 4, 4, 4, 4]
    assert len(complementary_masks([torch.arange(3.0)], 2, round_to=4).kept[0]) == 3
    assert len(complementary_masks(scores, 9, min_channels=5, round_to=4).kept[0]) == 8


def test_masks_that_overlap_or_leave_a_gap_are_refused() -> None:
    yes, no = torch.tensor([True]), torch.tensor([False])
    with pytest.raises(AssertionError, match="disjoint"):
        ComplementaryMasks((yes,), (yes,))
    with pytest.raises(AssertionError, match="cover"):
        ComplementaryMasks((no,), (no,))


def test_the_schedule_rises_from_nothing_to_the_ratio() -> None:
    values = [target_sparsity(0.3, step / 20) for step in range(21)]
    assert values[0] == 0
    assert values[-1] == 0.3
    assert all(a < b for a, b in itertools.pairwise(values))
    assert target_sparsity(0.3, 0.5) == pytest.approx(0.3 * (1 - 0.125))
    assert target_sparsity(0.3, -1) == 0
    assert target_sparsity(0.3, 2) == 0.3


@pytest.mark.parametrize("seed", range(20))
def test_the_share_of_all_channels_ever_made_is_kept_while_the_network_grows(seed: int) -> None:
    rng = random.Random(seed)
    width = made = rng.randint(20, 120)
    removed = 0
    for step in range(1, 11):
        sparsity = target_sparsity(0.4, step / 10)
        remove = channels_to_remove(width, removed, sparsity)
        assert 0 <= remove < width
        width, removed = width - remove, removed + remove
        assert removed + width == made
        assert abs(removed - sparsity * made) <= 0.5 + 1e-9
        if step < 10:
            grown = rng.choice((0, 0, rng.randint(1, 40)))
            width, made = width + grown, made + grown
    assert removed / made == pytest.approx(0.4, abs=0.5 / made + 1e-9)


def test_what_could_not_go_before_goes_later_and_nothing_comes_back() -> None:
    assert channels_to_remove(100, 0, 0.3) == 30
    assert channels_to_remove(90, 10, 0.3) == 20
    assert channels_to_remove(50, 50, 0.3) == 0


def test_the_negative_path_of_a_block_that_loses_nothing_is_all_of_it() -> None:
    masks = complementary_masks([torch.arange(4.0), torch.full((3,), 9.0)], 2, min_channels=2)
    assert masks.kept == [[2, 3], [0, 1, 2]]
    assert masks.complement_kept == [[0, 1], [0, 1, 2]]


def test_undecided_is_what_the_error_does_not_tell_from_the_least_kept_channel() -> None:
    scores = [torch.tensor([4.0, 0.0, 1.0, 2.0, 9.0]), torch.tensor([1.0, 1.0])]
    masks = complementary_masks(scores, 3, min_channels=2)
    assert masks.kept == [[0, 4], [0, 1]]

    def count(*errors: float) -> int:
        return undecided(Importance(scores, [torch.tensor(errors), torch.zeros(2)]), masks)

    assert count(0, 0, 0, 0, 0) == 0
    assert count(1, 0, 0, 0, 0) == 1  # 2 lies 2 below, which is two errors
    assert count(0.99, 0, 0, 0, 0) == 0
    assert count(0, 2, 1.5, 0, 0) == 2  # each by its own error: 4 and 3 below
    assert count(0.6, 0, 0, 0.8, 0) == 1  # both errors together
    assert count(0, 0, 0, 0, 99) == 0  # of a channel that is not the least one
    assert count(*[float("nan")] * 5) == 0  # one batch: the errors are not known
