from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as vision

import sseg_nase
from sseg_nase.data import store as store_module
from sseg_nase.data.opening import ORDINARY, Facts, Reading
from sseg_nase.data.pixels import load_image
from sseg_nase.data.store import ImageStore, Listing, build_store
from sseg_nase.errors import UserError


def pictures(n: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def listing(n: int = 6, size: int = 8) -> Listing:
    images = pictures(n, size)
    return Listing(("a", "b"), [(image, i * 2 // n) for i, image in enumerate(images)])


def saved(path: Path, pixels: np.ndarray | Image.Image) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path)
    return path


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_build_keeps_every_byte_in_order(tmp_path: Path, workers: int) -> None:
    n = 2 * store_module.BLOCK + 7  # several blocks, the last one short
    made = listing(n)
    store = build_store(
        tmp_path / "s", lambda: made, 8, workers=workers, source="here", split="val"
    )
    assert isinstance(store.images, np.memmap)
    assert np.array_equal(store.images, np.stack([image for image, _ in made.items]))
    assert store.labels.tolist() == [label for _, label in made.items]
    assert store.class_names == ("a", "b")
    assert len(store) == store.manifest["count"] == n
    assert (store.manifest["source"], store.manifest["split"]) == ("here", "val")
    store.verify()
    assert {path.name for path in tmp_path.iterdir()} == {"s", ".s.lock"}


def test_build_does_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    made = listing(300, 11)
    checksums = [
        build_store(tmp_path / str(w), lambda: made, 8, workers=w).manifest["sha256"]
        for w in (0, 4)
    ]
    assert checksums[0] == checksums[1]


def test_a_finished_store_is_opened_without_reading_the_source(tmp_path: Path) -> None:
    build_store(tmp_path / "s", listing, 8, workers=0)

    def read() -> Listing:
        raise AssertionError("read again")

    assert len(build_store(tmp_path / "s", read, 8, workers=0)) == 6


def test_batch_copies_in_the_order_asked(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", listing, 8, workers=0)
    expected = pictures(6).transpose(0, 3, 1, 2)[[4, 0, 4]]
    for indices in ([4, 0, 4], np.array([4, 0, 4]), torch.tensor([4, 0, 4])):
        batch = store.batch(indices)
        assert batch.dtype == torch.uint8
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert np.array_equal(batch.numpy(), expected)
    batch.zero_()
    assert np.array_equal(store.batch([4, 0, 4]).numpy(), expected)
    assert store.batch([]).shape == (0, 3, 8, 8)


def test_class_indices_and_counts() -> None:
    labels = np.array([2, 0, 2, 1, 0, 2])
    store = ImageStore.from_arrays(pictures(6), labels, ["a", "b", "c", "d"], split="train")
    assert [indices.tolist() for indices in store.class_indices] == [[1, 4], [3], [0, 2, 5], []]
    assert store.counts().tolist() == [2, 1, 3, 0]
    assert store.manifest["split"] == "train"
    assert store.manifest["image_size"] == 8
    store.verify()


def test_verify_finds_one_changed_pixel(tmp_path: Path) -> None:
    build_store(tmp_path / "s", listing, 8, workers=0)
    with (tmp_path / "s" / "images.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    store = ImageStore.open(tmp_path / "s")
    with pytest.raises(UserError, match=r"checksum.*Delete this folder"):
        store.verify()


def test_what_another_process_has_built_meanwhile_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = store_module.locked

    @contextmanager
    def waited(path: Path) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(store_module, "locked", plain)
            build_store(tmp_path / "s", listing, 8, workers=0)
        yield

    monkeypatch.setattr(store_module, "locked", waited)

    def read() -> Listing:
        raise AssertionError("read again")

    assert len(build_store(tmp_path / "s", read, 8, workers=0)) == 6


def test_verify_reads_all_images_and_the_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CHECKSUM_BLOCK", 4)
    store = build_store(tmp_path / "s", listing, 8, workers=0)
    store.verify()
    np.save(tmp_path / "s" / "labels.npy", store.labels[::-1])
    with pytest.raises(UserError, match="checksum of its images or labels"):
        ImageStore.open(tmp_path / "s").verify()
    np.save(tmp_path / "s" / "labels.npy", store.labels)
    images = np.load(tmp_path / "s" / "images.npy")
    images[5, 0, 0, 0] ^= 1
    np.save(tmp_path / "s" / "images.npy", images)
    with pytest.raises(UserError, match="checksum"):
        ImageStore.open(tmp_path / "s").verify()


def test_what_is_kept_is_copied_whole_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "CHECKSUM_BLOCK", 2)
    images = pictures(7)
    items = [(image, 0) for image in (images[0], *images, images[6])]
    made = Listing(("a",), items)
    store = build_store(tmp_path / "s", lambda: made, 8, workers=0, duplicates="drop")
    assert np.array_equal(store.images, images)
    store.verify()


def test_a_store_may_be_read_by_whoever_may_read_the_cache(tmp_path: Path) -> None:
    for mode in (0o755, 0o700):
        cache = tmp_path / f"cache-{mode:o}"
        cache.mkdir()
        cache.chmod(mode)
        store = build_store(cache / "s", listing, 8, workers=0)
        assert store.folder is not None
        assert store.folder.stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("channels", [1, 3])
def test_room_for_all_pixels_is_looked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(store_module, "check_room", lambda folder, needed: asked.append(needed))
    build_store(tmp_path / "s", listing, 5, workers=0, channels=channels)
    assert asked == [6 * 5 * 5 * channels]


def shorten(folder: Path) -> None:
    with (folder / "images.npy").open("r+b") as file:
        file.truncate(200)


def older(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "schema": 0}))


def newer(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(
        json.dumps({**manifest, "schema": manifest["schema"] + 1})
    )


def of_other_channels(folder: Path) -> None:
    images = np.load(folder / "images.npy")
    np.save(folder / "images.npy", images[..., :1])


@pytest.mark.parametrize(
    "damage",
    [
        shorten,
        older,
        newer,
        of_other_channels,
        lambda folder: (folder / "manifest.json").write_text("{"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "labels.npy").unlink(),
        lambda folder: np.save(folder / "labels.npy", np.zeros(5, np.int64)),
        lambda folder: np.save(folder / "labels.npy", np.full(6, 2)),
    ],
)
def test_open_refuses_a_damaged_store(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    build_store(tmp_path / "s", listing, 8, workers=0)
    damage(tmp_path / "s")
    with pytest.raises(UserError, match="Delete this folder"):
        ImageStore.open(tmp_path / "s")


def test_open_says_when_there_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image store"):
        ImageStore.open(tmp_path / "s")


def test_another_process_opens_the_files_instead_of_copying_pixels(tmp_path: Path) -> None:
    store = build_store(tmp_path / "s", lambda: listing(200), 8, workers=0)
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).images, store.images)
    in_memory = ImageStore.from_arrays(pictures(3), np.array([0, 1, 0]), ["a", "b"])
    assert np.array_equal(pickle.loads(pickle.dumps(in_memory)).images, in_memory.images)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_crash_while_building_leaves_no_store(tmp_path: Path, workers: int) -> None:
    made = listing(500)
    broken = tmp_path / "broken.png"
    saved(broken, pictures(1, 40)[0])
    broken.write_bytes(broken.read_bytes()[:-900])
    items = [*made.items, (broken, 1)]
    cache = tmp_path / "cache"
    with pytest.raises(UserError, match=r"broken\.png cannot be read.*delete it or download"):
        build_store(cache / "s", lambda: Listing(("a", "b"), items), 8, workers=workers)
    assert [path.name for path in cache.iterdir()] == [".s.lock"]
    assert len(build_store(cache / "s", lambda: made, 8, workers=workers)) == 500


def slow(seconds: float) -> Listing:
    def load(image: int, size: int, channels: int, reading: Reading) -> tuple[np.ndarray, Facts]:
        time.sleep(seconds)
        return np.full((size, size, channels), image % 256, np.uint8), ORDINARY

    return Listing(("a",), [(number, 0) for number in range(1000)], load=load)


def nothing_is_left(cache: Path, since: float) -> None:
    assert time.monotonic() - since < 1
    assert [path.name for path in cache.iterdir()] == [".s.lock"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]


@pytest.fixture
def ctrl_c_is_heard() -> Iterator[None]:
    """A shell that starts the tests in the background has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_is_heard")
@pytest.mark.parametrize("workers", [0, 2])
def test_ctrl_c_while_building_stops_within_one_image(tmp_path: Path, workers: int) -> None:
    """A block of 1000 such images would take 5 seconds."""
    pressed = []

    def press() -> None:
        pressed.append(time.monotonic())
        signal.raise_signal(signal.SIGINT)

    timer = threading.Timer(0.5, press)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        build_store(tmp_path / "s", lambda: slow(0.04), 8, workers=workers)
    nothing_is_left(tmp_path, pressed[0])
    timer.join()


def test_threads_end_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def update(self, data: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.hashlib, "sha256", Full)
    with pytest.raises(UserError, match=r"cannot be built.*no space is left") as caught:
        build_store(tmp_path / "s", lambda: slow(0.001), 8, workers=2)
    nothing_is_left(tmp_path, time.monotonic())  # while the error still has its traceback
    del caught


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanishes_or_is_half_written_while_building_is_named(
    tmp_path: Path, workers: int
) -> None:
    paths = [saved(tmp_path / f"{i}.png", image) for i, image in enumerate(pictures(300, 16))]
    items = [(path, 0) for path in paths]
    whole = paths[200].read_bytes()
    paths[200].write_bytes(whole[:-500])
    with pytest.raises(UserError, match=r"200\.png cannot be read.*cut off"):
        build_store(tmp_path / "cache" / "s", lambda: Listing(("a",), items), 8, workers=workers)
    paths[200].unlink()
    with pytest.raises(UserError, match=r"200\.png does not exist"):
        build_store(tmp_path / "cache" / "s", lambda: Listing(("a",), items), 8, workers=workers)
    paths[200].write_bytes(whole)
    made = build_store(tmp_path / "cache" / "s", lambda: Listing(("a",), items), 8, workers=workers)
    assert len(made) == made.manifest["listed"] == 300


def test_what_a_killed_builder_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".s.xyz.tmp").mkdir()
    (tmp_path / ".s.xyz.tmp" / "images.npy").write_bytes(b"half")
    (tmp_path / ".other.xyz.tmp").mkdir()  # which another process may be building
    build_store(tmp_path / "s", listing, 8, workers=0)
    assert not (tmp_path / ".s.xyz.tmp").exists()
    assert (tmp_path / ".other.xyz.tmp").exists()


def test_a_cache_that_cannot_be_written_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"paths\.cache_dir"):
        build_store(tmp_path / "file" / "s", listing, 8, workers=0)


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    made = Listing(("a", "lonely"), [(pictures(1)[0], 0)])
    with pytest.raises(UserError, match="lonely"):
        build_store(tmp_path / "s", lambda: made, 8, workers=0)


BUILDER = """
import sys, time
from pathlib import Path
import numpy as np
from sseg_nase.data.store import Listing, build_store
base, name = Path(sys.argv[1]), sys.argv[2]
(base / f"ready-{name}").touch()
while len(list(base.glob("ready-*"))) < 2:
    time.sleep(0.01)

def read():
    (base / f"read-{name}").touch()
    time.sleep(0.5)
    return Listing(("a",), [(np.full((8, 8, 3), i, np.uint8), 0) for i in range(50)])

store = build_store(base / "cache" / "s", read, 8, workers=1)
store.verify()
print(len(store))
"""


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    package = Path(sseg_nase.__file__).parents[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path), name],
            cwd=package,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert [out for out, _ in outputs] == ["50\n", "50\n"]
    assert len(list(tmp_path.glob("read-*"))) == 1
    assert sum("Waiting for another process" in err for _, err in outputs) == 1
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"s", ".s.lock"}


@pytest.mark.parametrize("shape", [(8, 8), (30, 20), (21, 33), (5, 9), (9, 5), (100, 8), (3, 3)])
def test_load_image_equals_torchvisions_resize_and_centre_crop(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    expected = np.asarray(vision.center_crop(vision.resize(image, 8), [8, 8]))
    assert np.array_equal(load_image(saved(tmp_path / "x.png", pixels), 8), expected)
    assert np.array_equal(load_image(pixels, 8), expected)


def test_load_image_turns_every_mode_into_rgb(tmp_path: Path) -> None:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    three = np.repeat(grey[..., None], 3, axis=2)
    colour = pictures(1)[0]
    palette = Image.fromarray(colour // 86 * 86).quantize(64)
    alpha = np.concatenate([colour, np.full((8, 8, 1), 255, np.uint8)], axis=2)
    bits = (grey > 99).astype(np.uint8)
    cases = {
        "grey": (Image.fromarray(grey), three),
        "bits": (Image.fromarray(bits * 255).convert("1"), bits[..., None].repeat(3, 2) * 255),
        "deep": (Image.fromarray(grey.astype(np.uint16) * 257), three),
        "rgba": (Image.fromarray(alpha), colour),
        "palette": (palette, np.asarray(palette.convert("RGB"))),
    }
    for name, (image, expected) in cases.items():
        path = saved(tmp_path / f"{name}.png", image)
        assert np.array_equal(load_image(path, 8), expected), name
    assert np.array_equal(load_image(grey, 8), three)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("kept", [0, 10, 60, 400])
def test_a_truncated_image_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    path = saved(tmp_path / f"cut.{suffix}", pictures(1, 32)[0])
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=rf"cut\.{suffix} cannot be read"):
        load_image(path, 8)


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png does not exist"):
        load_image(tmp_path / "gone.png", 8)


def test_pillows_warnings_do_not_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.fromarray(pictures(1)[0]).quantize(16)
    path = tmp_path / "transparent.png"
    image.save(path, transparency=bytes([0, 128] * 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.warns(Warning, match="bomb"), Image.open(path):
        pass  # or nothing below would be proven
    for workers in (0, 2):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            build_store(
                tmp_path / f"s{workers}",
                lambda: Listing(("a",), [(path, 0)]),
                8,
                workers=workers,
            )


def test_a_free_lock_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with (
        store_module.locked(tmp_path / "new" / "free"),
        caplog.at_level(logging.DEBUG, "sseg_nase"),
    ):
        assert (tmp_path / "new" / ".free.lock").exists()
    assert not caplog.records


def test_a_store_is_on_the_disk_before_it_is_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda handle: (done.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (done.append("rename"), rename(a, b))[1])
    images = [(np.full((8, 8, 3), value, dtype=np.uint8), 0) for value in range(3)]
    build_store(tmp_path / "store", lambda: Listing(("a",), images), 8, workers=0)
    assert done == ["fsync"] * 4 + ["rename"]  # images, labels, hashes, manifest


def test_hashes_are_those_of_the_images_that_are_kept(tmp_path: Path) -> None:
    one, other = pictures(2)
    items = [(one, 0), (one, 0), (other, 0)]
    store = build_store(
        tmp_path / "store", lambda: Listing(("a",), items), 8, workers=0, duplicates="drop"
    )
    assert store.hashes.tolist() == store_module.hashes_of(np.stack([one, other])).tolist()


@pytest.mark.parametrize(("schema", "outdated"), [(0, True), (-1, False), (None, False)])
def test_only_stores_of_earlier_versions_are_outdated(
    schema: int | None, outdated: bool, tmp_path: Path
) -> None:
    number = store_module.SCHEMA if schema == -1 else schema
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": number}))
    assert store_module.outdated(tmp_path) is outdated
