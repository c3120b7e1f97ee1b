"""Images of one split in one memory-mapped file: built once, then opened in milliseconds.

A store is a folder with `images.npy` (uint8 `[n, H, W, C]`), `labels.npy` (int64 `[n]`) and
`manifest.json`. It becomes visible by one rename, when everything in it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image

from sseg_nase.errors import UserError
from sseg_nase.files import StorageError, check_room, storage_error, write_json

SCHEMA = 1
BLOCK = 128  # images per task of the thread pool
MODES = {1: "L", 3: "RGB"}  # Pillow's, by channels
CHECKSUM_BLOCK = 1024  # images read at once when a store is verified

logger = logging.getLogger("sseg_nase")

ImageItem = tuple["Path | np.ndarray", int]


@dataclass(frozen=True)
class Listing:
    """What a store is built from: `items` are (file or uint8 array `[H, W(, 3)]`, label) pairs.

    `notes` go into the manifest. With another `load(image, image_size, channels)` than `load_image`
    the images may be whatever that takes; it is called in several threads.
    """

    class_names: tuple[str, ...]
    items: Sequence[tuple[Any, int]]
    notes: Mapping[str, Any] = field(default_factory=dict)
    load: Callable[[Any, int, int], np.ndarray] | None = None


class ImageStore:
    """Images uint8 `[n, H, W, C]`, labels int64 `[n]`, class names and a manifest; read-only.

    C is 3, or 1 for grey images.
    """

    device = torch.device("cpu")  # images are read to RAM

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        manifest: dict[str, Any],
        folder: Path | None = None,
    ) -> None:
        assert (images.ndim, images.dtype) == (4, np.uint8)
        assert images.shape[3] in MODES, images.shape
        assert (labels.shape, labels.dtype) == (images.shape[:1], np.int64)
        self.images = images
        self.labels = labels
        self.manifest = manifest
        self.folder = folder

    @classmethod
    def open(cls, folder: Path) -> ImageStore:
        """Open the store in `folder`; checks the manifest and the sizes, not the pixels.

        Raises UserError when there is no store or when it is damaged.
        """
        folder = Path(folder)
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
            labels = np.load(folder / "labels.npy", allow_pickle=False)
            n, size = manifest["count"], manifest["image_size"]
            channels = manifest.get("channels", 3)  # what older manifests do not say
            classes = len(manifest["classes"])
            whole = (
                manifest["schema"] == SCHEMA
                and (images.shape, images.dtype) == ((n, size, size, channels), np.uint8)
                and (labels.shape, labels.dtype) == ((n,), np.int64)
                and 0 <= labels.min() <= labels.max() < classes
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
            raise _damaged(folder, str(error)) from error
        if not whole:
            raise _damaged(folder, "its manifest and its arrays do not agree")
        return cls(images, labels, manifest, folder)

    @classmethod
    def from_arrays(
        cls,
        images: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        **described: Any,
    ) -> ImageStore:
        """A store in memory of square `images` uint8 `[n, S, S, C]` and `labels` `[n]`.

        `described` (source, layout, split, ...) goes into the manifest.
        """
        images = np.ascontiguousarray(images, dtype=np.uint8)
        labels = np.ascontiguousarray(labels, dtype=np.int64)
        assert images.shape[:3] == (len(labels), images.shape[1], images.shape[1])
        assert len(labels) == 0 or 0 <= labels.min() <= labels.max() < len(class_names)
        checksums = {"images": _sha256(images), "labels": _sha256(labels)}
        manifest = _manifest(class_names, images.shape, checksums, described)
        return cls(images, labels, manifest)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; label `i` is the i-th."""
        return tuple(self.manifest["classes"])

    @cached_property
    def class_indices(self) -> list[np.ndarray]:
        """Per class the int64 indices of its images, ascending."""
        order = np.argsort(self.labels, kind="stable")
        return np.split(order, np.cumsum(self.counts())[:-1])

    def counts(self) -> np.ndarray:
        """Images per class, int64 `[classes]`."""
        return np.bincount(self.labels, minlength=len(self.class_names))

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.images.shape[1]

    @property
    def channels(self) -> int:
        """3, or 1 for grey images."""
        return self.images.shape[3]

    def batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
        """Copy the images at `indices`, in that order, as uint8 `[B, C, H, W]` on the CPU.

        Channels-last in memory, as they are stored.
        """
        chosen = np.asarray(self.images[np.asarray(indices, dtype=np.int64)])
        if isinstance(self.images.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            # What was read stays in the system's file cache, but not in this process's memory.
            self.images.base.madvise(mmap.MADV_DONTNEED)
        return torch.from_numpy(chosen).permute(0, 3, 1, 2)

    def read(self, indices: Sequence[int] | np.ndarray | torch.Tensor, out: torch.Tensor) -> None:
        """Write the images at `indices`, in that order, to `out` uint8 `[B, C, H, W]` in RAM."""
        out.copy_(self.batch(indices))

    def verify(self) -> None:
        """Read everything and compare the checksums; raises UserError when they differ."""
        found = {"images": _sha256(self.images), "labels": _sha256(self.labels)}
        if found != self.manifest["sha256"]:
            raise _damaged(self.folder, "the checksum of its images or labels is wrong")

    def __len__(self) -> int:
        return len(self.labels)

    def __reduce__(self) -> tuple[Any, ...]:
        # A memory map pickles as all of its pixels; another process opens the files instead.
        if self.folder is not None:
            return ImageStore.open, (self.folder,)
        return ImageStore, (self.images, self.labels, self.manifest)


def build_store(
    folder: Path,
    read: Callable[[], Listing],
    image_size: int,
    *,
    workers: int,
    channels: int = 3,
    **described: Any,
) -> ImageStore:
    """Open the store in `folder`, building it from `read()` when it is not there yet.

    Several processes may call this at once: one builds under a lock, the others wait. Images are
    decoded by `workers` threads (0: in this one), made RGB (grey where `channels` is 1) and
    `image_size` square, and written as they come. `described` (source, layout, split, ...) goes
    into the manifest. A crash leaves no store. Raises UserError naming the image that cannot be
    read, or the class without images.
    """
    folder = Path(folder)
    if folder.exists():
        return ImageStore.open(folder)
    try:
        with locked(folder):
            if not folder.exists():
                _remove_leftovers(folder)
                _build(folder, read(), (image_size, channels), workers, described)
    except (OSError, StorageError) as error:
        why = storage_error(error, folder.parent) or f"{error}."
        raise UserError(
            f"The image store {folder} cannot be built: {why} The images must be readable, and "
            "paths.cache_dir a folder that can be written and has space."
        ) from error
    return ImageStore.open(folder)


def load_image(image: Path | np.ndarray, image_size: int, channels: int = 3) -> np.ndarray:
    """Decode `image` to RGB uint8 `[image_size, image_size, 3]`, or grey with 1 of `channels`.

    The shorter side is resized (bilinear, antialiased), the longer one cropped at the centre; an
    image of that size keeps every byte. Raises UserError naming a file that cannot be decoded.
    """
    if isinstance(image, np.ndarray):
        return _fit(Image.fromarray(np.ascontiguousarray(image)), image_size, channels)
    with opened(image) as decoded:
        return _fit(decoded, image_size, channels)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Open an image file and work with it; raises UserError naming it when it cannot be decoded."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise UserError(f"The image {path} does not exist.") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ) as error:
        raise UserError(
            f"The image {path} cannot be read: {error}. "
            "It may be truncated: delete it or download it again."
        ) from error


def eight_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image with 8 bits; any other as it is."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        # convert("RGB") would clip everything above 255 to white.
        grey = np.asarray(image.convert("I")).clip(0, 65535)
        return Image.fromarray(np.round(grey / 257).astype(np.uint8))
    return image


def _fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    pixels = np.asarray(_cut(eight_bits(image).convert(MODES[channels]), size))
    return pixels.reshape(size, size, channels)


def _cut(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    if (width, height) == (size, size):
        return image
    if width <= height:
        scaled = (size, max(size, int(size * height / width)))
    else:
        scaled = (max(size, int(size * width / height)), size)
    image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return image.crop((left, top, left + size, top + size))


def _build(
    folder: Path,
    listing: Listing,
    form: tuple[int, int],
    workers: int,
    described: Mapping[str, Any],
) -> None:
    """Write the images in their `form`, size and channels."""
    labels = np.array([label for _, label in listing.items], dtype=np.int64)
    size, channels = form
    shape = (len(labels), size, size, channels)
    counts = np.bincount(labels, minlength=len(listing.class_names))
    assert len(counts) == len(listing.class_names)
    if not len(labels):
        raise UserError(f"There are no images in {described.get('source', folder)}.")
    for name, count in zip(listing.class_names, counts, strict=True):
        if not count:
            raise UserError(
                f"The class {name} of {described.get('source', folder)} has no images: "
                "add some or remove the class."
            )
    check_room(folder.parent, len(labels) * size * size * channels)
    logger.info("Building the image store %s from %d images", folder, len(labels))
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        checksum = hashlib.sha256()
        # Written front to back rather than through a memory map: a full disk is then an error
        # that can be reported, not a bus error.
        with (temporary / "images.npy").open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for block in _decoded(listing, form, workers):
                file.write(block.data)
                checksum.update(block.data)
            _to_disk(file)
        with (temporary / "labels.npy").open("wb") as file:
            np.save(file, labels, allow_pickle=False)
            _to_disk(file)
        checksums = {"images": checksum.hexdigest(), "labels": _sha256(labels)}
        described = {**described, **listing.notes}
        manifest = _manifest(listing.class_names, shape, checksums, described)
        write_json(temporary / "manifest.json", manifest)
        temporary.chmod(folder.parent.stat().st_mode & 0o777)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _decoded(listing: Listing, form: tuple[int, int], workers: int) -> Iterator[np.ndarray]:
    """Yield the images in order, in blocks `[<= BLOCK, S, S, C]`, a few blocks ahead."""
    load = listing.load or load_image

    def decode(start: int) -> np.ndarray:
        block = listing.items[start : start + BLOCK]
        return np.stack([load(image, *form) for image, _ in block])

    starts = range(0, len(listing.items), BLOCK)
    with warnings.catch_warnings():
        # What Pillow has to say about odd metadata is not the user's business. The filter is
        # set here, around all threads, because it is one for the whole process.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if workers == 0:
            yield from map(decode, starts)
            return
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        pending: deque[Future[np.ndarray]] = deque()
        try:
            for start in starts:
                pending.append(pool.submit(decode, start))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` (a hidden file beside it); says so once when it has to wait."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.parent / f".{path.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("Waiting for another process that builds %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed builders of `folder` left behind; the caller holds the lock."""
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _manifest(
    class_names: Sequence[str],
    shape: tuple[int, ...],
    checksums: Mapping[str, str],
    described: Mapping[str, Any],
) -> dict[str, Any]:
    unknown = {"source": "memory", "layout": "arrays", "split": None}
    return {
        "schema": SCHEMA,
        **unknown,
        **described,
        "count": shape[0],
        "image_size": shape[1],
        "channels": shape[3],
        "classes": list(class_names),
        "sha256": dict(checksums),
    }


def _sha256(array: np.ndarray) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(array), CHECKSUM_BLOCK):
        digest.update(np.ascontiguousarray(array[start : start + CHECKSUM_BLOCK]).data)
    return digest.hexdigest()


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _damaged(folder: Path | None, reason: str) -> UserError:
    if folder is None:
        return UserError(f"The image store in memory was changed: {reason}.")
    if not folder.exists():
        return UserError(f"There is no image store in {folder}.")
    return UserError(
        f"The image store {folder} is damaged or of another version: {reason}. "
        "Delete this folder; the next run builds it again."
    )
