from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.config.groups.curriculum import LEVELS, SYNTHETIC_LEVELS, CurriculumConfig
from sseg_nase.data import rendered
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.feed import CurriculumFeed
from sseg_nase.data.placement import HeldImages, Images
from sseg_nase.data.prefetch import one_ahead
from sseg_nase.data.store import ImageStore

SIZE, REAL = 8, 23
IMAGE_BYTES = 3 * SIZE**2
EVERYTHING = 10**6
CPU = torch.device("cpu")


def store() -> ImageStore:
    pixels = np.random.default_rng(1).integers(0, 256, (REAL, SIZE, SIZE, 3), dtype=np.uint8)
    return ImageStore.from_arrays(pixels, np.zeros(REAL, dtype=np.int64), ["a"])


def drawn_curriculum(rng: np.random.Generator) -> CurriculumConfig:
    count = int(rng.integers(2, len(LEVELS) + 1))
    return replace(
        load(["curriculum=progressive"]).curriculum,
        levels=[str(level) for level in rng.permutation(LEVELS)[:count]],
        images={level: int(rng.integers(2, 30)) for level in SYNTHETIC_LEVELS},
        progression=bool(rng.random() < 0.8),
        gradual_mixing_ratio=float(rng.choice([0.0, 0.2, 0.6])),
        max_epochs_per_level=1,
    )


def feed(
    curriculum: CurriculumConfig,
    *,
    drawn_bytes: int = 0,
    held: bool = False,
    **changes: Any,
) -> CurriculumFeed:
    images: Images = HeldImages(store(), CPU) if held else store()
    options: dict[str, Any] = {
        "image_size": SIZE,
        "batch_size": 12,
        "images_per_epoch": 50,
        "epochs": 6,
        "seed": 3,
        "device": CPU,
    }
    return CurriculumFeed(
        curriculum,
        natural=images if "NATURAL" in curriculum.levels else None,
        drawn_bytes=drawn_bytes,
        **{**options, **changes},
    )


def reference(feed: CurriculumFeed, indices: dict[str, torch.Tensor]) -> torch.Tensor:
    """The batch that `indices` describe, image by image."""
    images = []
    for level, chosen in indices.items():
        for index in chosen:
            if level == "NATURAL":
                images.append(torch.from_numpy(store().images[int(index)]).permute(2, 0, 1))
            else:
                images.append(render(level, index[None], seed=3, image_size=SIZE)[0])
    return torch.stack(images)


@pytest.mark.parametrize("seed", range(15))
def test_placement_and_memory_change_no_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    curriculum = drawn_curriculum(rng)
    feeds = [
        feed(curriculum, drawn_bytes=room * IMAGE_BYTES, held=held)
        for room, held in ((0, False), (int(rng.integers(1, 100)), True), (EVERYTHING, True))
    ]
    halves = [feed(curriculum, drawn_bytes=40 * IMAGE_BYTES, part=(r, 2)) for r in (0, 1)]
    for epoch in range(4):
        start = int(rng.integers(0, 4))
        plan = feeds[0]._plan(epoch, "train")
        expected = [reference(feeds[0], indices) for indices in plan]
        for each in feeds:
            batches = list(each.epoch(epoch, start=start))
            assert len(batches) == each.batches_per_epoch - start
            for batch, images in zip(batches, expected[start:], strict=True):
                assert torch.equal(batch.images, images)
        shares = zip(*(half.epoch(epoch) for half in halves), strict=True)
        for (one, two), images in zip(shares, expected, strict=True):
            assert torch.equal(torch.cat([one.images, two.images]), images)
            assert (one.first, two.first, one.of, two.of) == (0, 6, 12, 12)
            assert one.seen == two.seen
        others = [
            torch.stack([batch.images for batch in each.others(epoch, "trial")]) for each in feeds
        ]
        probes = [each.probe() for each in feeds for _ in range(2)]
        assert all(torch.equal(images, others[0]) for images in others)
        assert all(torch.equal(images, probes[0]) for images in probes)
        for each in (*feeds, *halves):
            assert each.rendered.kept.nbytes <= EVERYTHING * IMAGE_BYTES
            each.schedule.step(1.0, None)


def test_a_feed_that_begins_later_gives_the_same() -> None:
    curriculum = replace(
        drawn_curriculum(np.random.default_rng(0)), levels=["BASIC", "OBJECT"], progression=True
    )
    one = feed(curriculum, drawn_bytes=30 * IMAGE_BYTES)
    for epoch in range(2):
        list(one.epoch(epoch))
        one.schedule.step(1.0, None)
    resumed = feed(curriculum, drawn_bytes=30 * IMAGE_BYTES)
    resumed.schedule.load_state_dict(one.schedule.state_dict())
    pairs = zip(one.epoch(2, start=1), resumed.epoch(2, start=1), strict=True)
    assert all(torch.equal(a.images, b.images) for a, b in pairs)


def test_the_second_time_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    curriculum = replace(load().curriculum, images=dict.fromkeys(SYNTHETIC_LEVELS, 20))
    images = feed(curriculum, drawn_bytes=EVERYTHING)
    list(images.epoch(0))
    images.probe()

    def again(*given: Any, **options: Any) -> torch.Tensor:
        raise AssertionError("drawn again")

    monkeypatch.setattr(rendered, "render", again)
    list(images.epoch(1))
    list(images.others(0, "trial"))
    images.probe()


def test_adversarial_rows_and_what_is_seen() -> None:
    curriculum = replace(
        load(["curriculum=mixed"]).curriculum, levels=["BASIC", "ADVERSARIAL", "NATURAL"]
    )
    for batch in feed(curriculum).epoch(0):
        rows = batch.adversarial
        assert rows == list(range(rows[0], rows[0] + len(rows)))
        assert sum(batch.seen.values()) == batch.of == len(batch.images) == 12
        twins = batch.images[rows].float().view(-1, 2, 3, SIZE, SIZE)
        apart = (twins[:, 0] - twins[:, 1]).abs().mean()
        assert apart < 0.5 * (twins[:, 0] - twins[:, 0].roll(1, 0)).abs().mean()


def test_a_share_knows_its_own_adversarial_rows() -> None:
    curriculum = replace(
        load(["curriculum=mixed"]).curriculum, levels=["BASIC", "ADVERSARIAL", "TEXTURE"]
    )
    whole = feed(curriculum).epoch(0)
    halves = [feed(curriculum, part=(rank, 2)).epoch(0) for rank in (0, 1)]
    for batch, *parts in zip(whole, *halves, strict=True):
        found = [part.first + row for part in parts for row in part.adversarial]
        assert found == batch.adversarial


def test_a_probe_goes_round_in_few_real_images() -> None:
    curriculum = replace(load(["curriculum=natural"]).curriculum, levels=["NATURAL"])
    one = feed(curriculum, batch_size=2 * REAL)
    images = torch.from_numpy(store().images).permute(0, 3, 1, 2)
    found = one.probe()
    assert len(found) == 2 * REAL
    assert all((found == each).flatten(1).all(1).sum() == 2 for each in images)


def test_levels_end_as_the_curriculum_says() -> None:
    curriculum = replace(
        load(["curriculum=synthetic"]).curriculum,
        levels=["BASIC", "TEXTURE", "OBJECT"],
        progression=True,
        plateau_threshold=0.5,
        plateau_window_size=1,
        gap_threshold=0.1,
        max_epochs_per_level=None,
    )
    losses = [9.0, 5.0, 1.0, 9.0]
    by_cap = feed(curriculum, epochs=7).schedule  # evenly, rounded up
    assert [by_cap.step(loss, None) for loss in losses] == [None, None, "cap", None]
    given = feed(replace(curriculum, max_epochs_per_level=2), epochs=7).schedule
    assert [given.step(loss, None) for loss in losses[:2]] == [None, "cap"]
    apart = feed(curriculum, epochs=7).schedule
    assert [apart.step(1.0, 0.3), apart.step(1.2, 0.3), apart.step(1.0, 0.05)] == [
        None,
        None,
        "plateau",
    ]


# -- CUDA ------------------------------------------------------------------------------------------


class Stream:
    """Writes down what a CUDA stream is asked to do."""

    device = torch.device("cuda", 0)

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.events = name, log, 0

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: int) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self) -> int:
        self.events += 1
        return self.events - 1


@dataclass
class MadeUpImages:
    """Stands for the tensor of batch `number`."""

    number: int
    log: list[str]

    def record_stream(self, stream: Stream) -> None:
        self.log.append(f"{self.number} is used on {stream.name}")


@dataclass
class MadeUpBatch:
    images: Any


def test_batches_are_made_one_ahead_beside_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    log = list[str]()
    main, side = Stream("main", log), Stream("side", log)
    active = [main]

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        active.append(stream)
        yield
        active.pop()

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: active[-1])

    def batches() -> Iterator[MadeUpBatch]:
        for number in range(3):
            log.append(f"{number} is made on {active[-1].name}")
            yield MadeUpBatch(MadeUpImages(number, log))

    given = []
    for batch in one_ahead(batches(), cast(Any, side)):
        assert active == [main]
        given.append(batch.images.number)
        log.append(f"{batch.images.number} is trained on")
    assert given == [0, 1, 2]
    assert log == [
        "side waits for main",
        "0 is made on side",
        "1 is made on side",
        "main waits for 0",
        "0 is used on main",
        "0 is trained on",
        "2 is made on side",
        "main waits for 1",
        "1 is used on main",
        "1 is trained on",
        "main waits for 2",
        "2 is used on main",
        "2 is trained on",
    ]


def test_nothing_to_make_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream("only", [])

    @contextmanager
    def on(stream: Stream) -> Iterator[None]:
        yield

    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    assert list(one_ahead(iter(list[MadeUpBatch]()), cast(Any, stream))) == []


def levels_of_one() -> CurriculumConfig:
    return replace(
        load(["curriculum=synthetic"]).curriculum,
        levels=["BASIC", "TEXTURE"],
        images={"BASIC": 15, "TEXTURE": 20},
        progression=False,
    )


def test_batches_of_trials_are_not_those_of_training() -> None:
    one = feed(levels_of_one())
    trained = [batch.images for epoch in (0, 1) for batch in one.epoch(epoch)]
    tried = [batch.images for epoch in (0, 1) for batch in one.others(epoch, "trial")]
    assert len(tried) == len(trained)
    for images in tried:
        assert images.shape == (12, 3, SIZE, SIZE)
        assert not any(torch.equal(images, other) for other in trained)
    assert not torch.equal(tried[0], next(one.others(0, "another purpose")).images)
    assert torch.equal(tried[0], next(one.others(0, "trial")).images)


def test_what_is_held_is_in_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    one = feed(levels_of_one())
    read: dict[str, set[int]] = {"BASIC": set(), "TEXTURE": set()}
    plain = one._read

    def watched(level: str, indices: torch.Tensor, out: torch.Tensor) -> None:
        read[level] |= set(indices.tolist())
        plain(level, indices, out)

    monkeypatch.setattr(one, "_read", watched)
    for epoch in range(8):
        list(one.epoch(epoch))
        list(one.others(epoch, "trial"))
    assert max(read["BASIC"]) < 15
    assert max(read["TEXTURE"]) < 20
    trained = {level: set(indices) for level, indices in read.items()}
    for indices in read.values():
        indices.clear()
    held = one.probe()
    assert len(held) == 12
    assert all(len(indices) == 6 for indices in read.values())
    assert not any(read[level] & trained[level] for level in read)
    assert torch.equal(held, one.probe())
    batches = list(one.held())
    assert torch.equal(batches[0].images, held)
    assert not any(read[level] & trained[level] for level in read)
    assert [len(read[level]) for level in read] == [len(batches) * 6] * 2  # each of them once
    assert min(read["BASIC"]) >= 16  # twins stay together: from an even number on
    again = list(one.held())
    assert all(torch.equal(a.images, b.images) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize(
    ("batch", "real", "batches"),
    [
        (12, 10_000, 22),  # 256 images and more
        (24, 10_000, 11),
        (96, 10_000, 8),
        (256, 10_000, 8),  # never fewer than eight of them
        (256, 901, 4),  # 80 % of a batch are real ones
        (24, 901, 11),
        (256, 72, 4),  # they come again, in other views
    ],
)
def test_what_is_held_is_some_batches_as_the_loss_compares_them(
    batch: int, real: int, batches: int
) -> None:
    curriculum = replace(
        load(["curriculum=progressive"]).curriculum,
        levels=["BASIC", "NATURAL"],
        images=dict.fromkeys(SYNTHETIC_LEVELS, 64),
    )
    one = feed(curriculum, batch_size=batch, images_per_epoch=batch)
    one.pools["NATURAL"] = real
    assert one.held_batches == max(8, -(-256 // batch))
    assert one.few_held is None
    one.schedule.advance()
    assert one.held_batches == batches
    few = batches < max(8, -(-256 // batch))
    assert (one.few_held is None) != few
    if few:
        assert f"{batches} held batches instead of 8" in one.few_held  # type: ignore[operator]
        assert f"NATURAL has {real}" in one.few_held  # type: ignore[operator]
    plan = one._held()
    assert [sum(map(len, each.values())) for each in plan] == [batch] * batches
    shown = torch.cat([each["NATURAL"] for each in plan])
    assert len(shown.unique()) == min(real, len(shown))
    parts = feed(curriculum, batch_size=batch, images_per_epoch=batch, micro=2, part=(1, 2))
    parts.schedule.advance()
    found = [(each.first, each.of, len(each.images)) for each in parts.held()][:2]
    assert found == [(batch // 4, batch, batch // 4), (3 * batch // 4, batch, batch // 4)]
