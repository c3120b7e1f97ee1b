"""The best network that is allowed, against trying all of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from sseg_nase.errors import UserError
from sseg_nase.oneshot.deriving import MOST_MEASURED, derive, ranked, skips


def some_scores(seed: int) -> dict[str, list[float]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"a": 3, "b": 4, "c": 2, "d": 3}
    return {n: torch.randn(size, generator=generator).tolist() for n, size in sizes.items()}


def all_of(scores: dict[str, list[float]]) -> list[tuple[float, dict[str, int]]]:
    spaces = [range(len(each)) for each in scores.values()]
    found = [dict(zip(scores, picks, strict=True)) for picks in itertools.product(*spaces)]
    return sorted(
        ((sum(scores[n][i] for n, i in p.items()), p) for p in found), key=lambda x: -x[0]
    )


@pytest.mark.parametrize("seed", range(5))
def test_every_network_comes_once_from_the_best_to_the_worst(seed: int) -> None:
    scores = some_scores(seed)
    assert list(ranked(scores)) == [picks for _, picks in all_of(scores)]


def test_the_best_that_is_allowed_is_found() -> None:
    scores = some_scores(1)
    few = lambda picks: sum(picks.values()) <= 2  # noqa: E731
    assert derive(scores, few) == next(picks for _, picks in all_of(scores) if few(picks))


def test_of_equal_ones_the_first() -> None:
    assert derive({"a": [0.0, 0.0], "b": [0.0, 1.0]}, lambda picks: True) == {"a": 0, "b": 1}


def test_where_nothing_is_allowed_it_says_what_to_raise() -> None:
    with pytest.raises(
        UserError, match=r"Of the 5 networks .* search\.caps and strategy\.max_skips"
    ):
        derive(some_scores(0), lambda picks: False, tries=5)


def test_skips_are_counted_by_their_operations() -> None:
    assert skips({"a": "skip_connect", "b": "none", "c": "identity", "d": "nor_conv_1x1"}) == 2


def test_what_takes_longer_than_it_should_is_passed_over() -> None:
    scores = some_scores(2)
    few = lambda picks: sum(picks.values()) <= 5  # noqa: E731
    first, second, third = [picks for _, picks in all_of(scores) if few(picks)][:3]
    measured: list[dict[str, int]] = []

    def latency(picks: dict[str, int]) -> float:
        measured.append(picks)
        return 3.5 if picks == third else 4.5 if picks == second else 4.0

    assert derive(scores, few, latency=latency, most=3.5) == third
    assert measured == [first, second, third]
    assert derive(scores, few, latency=latency, most=4.0) == first
    assert derive(scores, few, most=0.0) == first  # nothing measures it
    measured.clear()
    with pytest.raises(UserError, match=r"latency_ms=3: the 30 .* the fastest of them 3\.5 ms"):
        derive(scores, lambda picks: True, latency=latency, most=3.0)
    assert len(measured) == MOST_MEASURED
