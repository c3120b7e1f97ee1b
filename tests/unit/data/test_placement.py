from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase.config.compose import load
from sseg_nase.config.schema import DataConfig
from sseg_nase.config.validation import cautions
from sseg_nase.data import placement
from sseg_nase.data.placement import Free, HeldImages, fetch, place, plan
from sseg_nase.data.store import ImageStore, Listing, build_store
from sseg_nase.errors import UserError
from sseg_nase.hardware.memory import resident_memory_mb

CPU = torch.device("cpu")
GIB = 2**30
SMALL, LARGE = 100_000, 600_000  # images of 1,000 bytes: 0.09 and 0.56 GiB


def store(count: int = 50, size: int = 6) -> ImageStore:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageStore.from_arrays(pixels, np.zeros(count, dtype=np.int64), ["a"])


@pytest.mark.parametrize(
    ("real", "ram", "gpu", "where", "why"),
    [
        (SMALL, 8, None, "ram", "0.09 GB, within data.memory_gb=0.4"),
        (SMALL, None, None, "ram", "within data.memory_gb=0.4"),  # where the system does not tell
        (LARGE, 8, None, "disk", "0.56 GB, more than data.memory_gb=0.4"),
        (SMALL, 0.3, None, "disk", "0.09 GB, more than 25% of the 0.30 GB free in RAM"),
        (SMALL, 8, 4, "device", "0.09 GB, not over 25% of the 4.00 GB free on the GPU"),
        (LARGE, 0.1, 4, "device", "0.56 GB, not over 25% of the 4.00 GB free on the GPU"),
        (LARGE, 8, 2, "disk", "more than data.memory_gb"),
        (SMALL, 8, 0.2, "ram", "within data.memory_gb"),
        (SMALL, 0.2, 0.2, "disk", "free in RAM"),
    ],
)
def test_auto_takes_the_best_that_fits(
    real: int, ram: float | None, gpu: float | None, where: str, why: str
) -> None:
    free = Free(
        None if ram is None else int(ram * GIB),
        None if gpu is None else int(gpu * GIB),
    )
    planned = plan(real, 0, 1000, DataConfig("auto", 0.4), free)
    assert planned.where == where
    (note,) = planned.notes
    assert note.startswith(f"data.placement=auto took {where}: the {real:,} real images take ")
    assert why in note


@pytest.mark.parametrize(
    ("asked", "gpu", "where"),
    [("disk", 8, "disk"), ("ram", 8, "ram"), ("device", 8, "device"), ("device", None, "ram")],
)
def test_what_is_asked_for_is_done(asked: str, gpu: int | None, where: str) -> None:
    free = Free(8 * GIB, None if gpu is None else gpu * GIB)
    planned = plan(LARGE, 0, 1000, DataConfig(asked, 0.4), free)
    assert (planned.where, planned.notes) == (where, [])


@pytest.mark.parametrize(
    ("asked", "ram", "gpu", "there"),
    [
        ("ram", 0.6, None, "0.60 GB are free in RAM"),
        ("ram", 0.6, 8, "0.60 GB are free in RAM"),
        ("device", 0.6, None, "0.60 GB are free in RAM"),
        ("device", 8, 0.7, "0.70 GB are free on the GPU"),
    ],
)
def test_what_does_not_fit_is_refused(
    asked: str, ram: float, gpu: float | None, there: str
) -> None:
    free = Free(int(ram * GIB), None if gpu is None else int(gpu * GIB))
    with pytest.raises(UserError) as raised:
        plan(LARGE, 0, 1000, DataConfig(asked, 0.4), free)
    said = str(raised.value)
    assert said.startswith(f"data.placement={asked}: the real images take 0.56 GB")
    assert there in said
    assert "data.placement=disk" in said


@pytest.mark.parametrize(
    ("asked", "ram", "gpu", "left"),
    [
        ("auto", 8, None, 0.4 - SMALL * 1000 / GIB),  # the copy counts
        ("ram", 8, None, 0.4),  # asked for: beside what is taken unasked
        ("disk", 8, None, 0.4),
        ("disk", 0.4, None, 0.1),
        ("auto", 8, 4, 0.4),
        ("auto", 8, 1, 0.25 * (1 - SMALL * 1000 / GIB)),  # on the device, like the copy
        ("disk", 8, 1, 0.25),
    ],
)
def test_what_is_left_for_drawn_images(
    asked: str, ram: float, gpu: float | None, left: float
) -> None:
    free = Free(int(ram * GIB), None if gpu is None else int(gpu * GIB))
    planned = plan(SMALL, 0, 1000, DataConfig(asked, 0.4), free)
    assert planned.drawn_bytes == pytest.approx(left * GIB, abs=2)


def test_images_in_memory_stay_within_their_bound() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        real, ram = int(rng.integers(0, 10**6)), int(rng.integers(0, 4 * GIB))
        memory_gb = float(rng.random())
        planned = plan(real, 10**6, 1000, DataConfig("auto", memory_gb), Free(ram, None))
        copy = real * 1000 if planned.where == "ram" else 0
        assert planned.drawn_bytes >= 0
        assert copy + planned.drawn_bytes <= memory_gb * GIB
        assert copy + planned.drawn_bytes <= 2 * placement.OWN_SHARE * ram


def test_it_is_said_when_not_all_drawn_images_are_kept() -> None:
    free = Free(8 * GIB, None)
    assert plan(0, 1000, 1000, DataConfig("auto", 0.4), free).notes == []
    assert plan(0, 1000, 1000, DataConfig("auto", 0.0), free).notes == []  # switched off
    (note,) = plan(0, 10**6, 2**10, DataConfig("auto", 0.25), free).notes
    assert note.startswith("data.memory_gb=0.25 keeps 262,144 of the 1,000,000 drawn images")


def test_a_copy_reads_like_the_store() -> None:
    images = store(2 * placement.COPY_BLOCK + 3)
    copy = HeldImages(images, CPU)
    assert len(copy) == len(images)
    assert torch.equal(copy.images, images.batch(range(len(images))))
    indices = torch.randint(0, len(images), (40,), generator=torch.Generator().manual_seed(0))
    for source in (copy, images):
        out = torch.zeros((42, 3, 6, 6), dtype=torch.uint8)
        fetch(source, indices, out[1:41])
        assert torch.equal(out[1:41], images.batch(indices))
        assert not out[[0, 41]].any()
    expected = torch.from_numpy(images.images[indices.numpy()]).permute(0, 3, 1, 2)
    assert torch.equal(images.batch(indices), expected)


@pytest.mark.parametrize(
    ("where", "kind"), [("disk", ImageStore), ("ram", HeldImages), ("device", HeldImages)]
)
def test_images_are_put_where_the_plan_says(where: str, kind: type) -> None:
    config = load([f"data.placement={where}", "curriculum=progressive", "hardware=cpu"])
    images, drawn_bytes, notes = place(
        store(), 100, image_size=6, data=config.data, hardware=config.hardware, device=CPU
    )
    assert isinstance(images, kind)
    assert (drawn_bytes > 0, notes) == (True, [])
    assert cautions(config) == []


@pytest.mark.parametrize("channels", [1, 3])
def test_the_plan_is_made_by_the_cap_on_memory_and_the_channels(
    monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    asked: list[tuple[str, float | None]] = []
    monkeypatch.setattr(
        placement, "free_memory", lambda device, most: asked.append((device.type, most)) or GIB
    )
    planned: list[Any] = []
    monkeypatch.setattr(
        placement, "plan", lambda *given: planned.append(given) or placement.Plan("disk", 7, ["so"])
    )
    config = load(["hardware=cpu", "hardware.max_memory_gb=3"])
    made = {"image_size": 6, "channels": channels, "data": config.data, "device": CPU}
    found = place(store(), 100, hardware=config.hardware, **made)
    assert found[1:] == (7, ["so"])
    assert asked == [("cpu", 3)]
    assert planned == [(50, 100, channels * 36, config.data, Free(GIB, None))]


def test_processes_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda device, most: GIB // 2)
    config = load(["hardware=cpu", "hardware.devices=2", "data.memory_gb=0.4"])
    _, drawn_bytes, _ = place(
        None, 100, image_size=6, data=config.data, hardware=config.hardware, device=CPU
    )
    assert drawn_bytes == GIB // 16


def test_a_placement_without_real_images_is_told_of() -> None:
    (said,) = cautions(load(["data.placement=ram"]))
    assert said.startswith("data.placement=ram: it has no effect")


def test_reading_a_store_does_not_fill_the_memory(tmp_path: Path) -> None:
    count, size = 1280, 84  # 27 MB
    pixels = np.zeros((size, size, 3), dtype=np.uint8)
    made = Listing(("a",), [(pixels, 0)] * count)
    images = build_store(tmp_path / "s", lambda: made, size, workers=0)
    out = torch.empty((64, 3, size, size), dtype=torch.uint8)
    images.read(np.arange(64), out)
    before = resident_memory_mb()
    if before is None or not Path("/proc").exists():
        pytest.skip("the system does not tell")
    for start in range(0, count, 64):
        images.read(np.arange(start, start + 64), out)
    after = resident_memory_mb()
    assert after is not None
    assert after - before < 8


def test_from_ram_to_a_gpu_by_page_locked_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up device stands for the GPU: what is copied and how, not the copy itself."""
    pinned, copies = list[torch.Tensor](), list[tuple[bool, bool]]()
    empty, copy = torch.empty, torch.Tensor.copy_

    def recorded_empty(*shape: Any, pin_memory: bool = False, **options: Any) -> torch.Tensor:
        made = empty(*shape, **options)
        if pin_memory:
            pinned.append(made)
        return made

    def recorded_copy(to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> Any:
        if any(source is each for each in pinned):
            copies.append((to.device.type == "meta", non_blocking))
        return copy(to, source, non_blocking)

    monkeypatch.setattr(torch, "empty", recorded_empty)
    monkeypatch.setattr(torch.Tensor, "copy_", recorded_copy)
    images = store()
    out = torch.zeros((3, 3, 6, 6), dtype=torch.uint8, device="meta")
    fetch(HeldImages(images, CPU), torch.tensor([4, 0, 4]), out)
    assert copies == [(True, True)]
    (buffer,) = pinned
    assert torch.equal(buffer, images.batch([4, 0, 4]))
