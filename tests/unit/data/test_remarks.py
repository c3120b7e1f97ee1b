"""What is said about the images of a store, by what was found while they were read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sseg_nase.data.opening import ORDINARY, Facts
from sseg_nase.data.remarks import Remarks, notices_of_one_colour
from sseg_nase.errors import UserError

UNIT, BYTES, ALL, TWELVE = (0.0, 1.0), (0.0, 255.0), (0.0, 65535.0), (0.0, 4095.0)


def name_of(place: int) -> str:
    return f"image {place}"


def remarks(*blocks: Sequence[Facts], brightest: Sequence[int] = ()) -> Remarks:
    found = Remarks()
    for number, block in enumerate(blocks):
        found.add(block, brightest[number] if brightest else 255)
    return found


def deep(peak: float, span: tuple[float, float] = ALL, kind: str = "I;16") -> Facts:
    return Facts(1, kind, span, peak)


def test_places_count_over_all_blocks_and_the_first_is_named() -> None:
    found = remarks([ORDINARY] * 3, [ORDINARY, Facts(frames=3)], [Facts(frames=2), ORDINARY])
    assert found.notices(name_of) == [
        "2 of 7 images have several pages or frames, such as image 4 (3): only the first is taken."
    ]
    assert remarks([ORDINARY] * 3).notices(name_of) == []


def test_of_every_mode_the_first_range_is_recorded() -> None:
    found = remarks([deep(9, TWELVE), deep(1, UNIT, "F")], [deep(9, ALL), deep(0.5, UNIT, "F")])
    assert found.ranges() == {"I;16": [0, 4095], "F": [0, 1]}
    assert remarks([ORDINARY]).ranges() == {}


def test_images_of_one_mode_and_of_different_ranges_are_named() -> None:
    # Of 16 bits every file says itself what is white.
    found = remarks([deep(9, TWELVE), deep(9, ALL)], [deep(1, UNIT, "F"), deep(0.5, UNIT, "F")])
    found.check(name_of)
    found.add([ORDINARY, deep(200, BYTES, "F"), deep(100, BYTES, "F")], 255)
    with pytest.raises(UserError, match=r"mode F .*: image 2 looks like 0…1, image 5 like 0…255"):
        found.check(name_of)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (
            [[deep(9000)], [deep(16000), ORDINARY], [deep(100)]],
            "of 3 images with 16 bits is 16,000",
        ),
        ([[deep(16383)]], "of 1 images"),
        ([[deep(16384)]], None),  # 14 bits are used
        ([[deep(9000)], [deep(60000)], [deep(100)]], None),
        ([[deep(4000, TWELVE)]], None),  # its range is known to be smaller
        ([[deep(4000, TWELVE)], [deep(4000)]], "of 2 images"),
        ([[deep(9000, BYTES, "I")]], None),
    ],
)
def test_dark_images_of_sixteen_bits_are_said_with_the_brightest_of_all(
    blocks: list[list[Facts]], said: str | None
) -> None:
    found = remarks(*blocks).notices(name_of)
    assert len(found) == (said is not None)
    if said is not None:
        assert said in found[0]
        peak = max(fact.peak for block in blocks for fact in block)
        assert f"dataset.value_range=[0,{peak:.0f}]" in found[0]


@pytest.mark.parametrize(
    ("brightest", "said"), [((200, 5), False), ((5, 15, 3), True), ((16, 3), False)]
)
def test_a_set_is_nearly_black_where_no_block_is_brighter(
    brightest: tuple[int, ...], said: bool
) -> None:
    found = remarks(*[[ORDINARY]] * len(brightest), brightest=brightest).notices(name_of)
    assert bool(found) == said
    if said:
        assert f"brightest value is {max(brightest)}" in found[0]


@pytest.mark.parametrize(
    ("plain", "labels", "said"),
    [
        ([0, 0, 0, 0], [0, 0, 1, 2], None),
        ([1, 1, 1, 1], [0, 0, 1, 2], "All 4 images have one colour each"),
        ([0, 1, 0, 0], [0, 0, 1, 2], None),  # one of two
        ([0, 0, 1, 0], [0, 0, 1, 2], "All images of class b have one colour each"),
        ([0, 0, 1, 1], [0, 0, 1, 2], "All images of class b and of 1 more have one colour each"),
        ([0, 1, 1, 0], [1, 2, 2, 1], "All images of class c have one colour each"),  # a has none
    ],
)
def test_a_class_without_pictures_is_named(
    plain: list[int], labels: list[int], said: str | None
) -> None:
    found = notices_of_one_colour(np.array(plain, bool), np.array(labels), ["a", "b", "c"])
    assert [one.partition(":")[0] for one in found] == ([said] if said else [])
