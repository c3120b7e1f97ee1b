"""Images of one split in one memory-mapped file: built once, then opened in milliseconds.

A store is a folder with `images.npy` (uint8 `[n, H, W, C]`), `labels.npy` (int64 `[n]`),
`hashes.npy` (uint64 `[n]`, equal for equal pixels), `files.json` (where each image came from) and
`manifest.json`. It becomes visible by one rename, when everything in it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout

from sseg_nase.data.duplicates import ONE_COLOUR, examine, hashes_of, of_one_colour
from sseg_nase.data.opening import PLAIN, Facts, Reading, without_warnings
from sseg_nase.data.pixels import MODES, load_with_facts
from sseg_nase.data.remarks import Remarks, notices_of_one_colour
from sseg_nase.errors import UserError, shown
from sseg_nase.files import StorageError, check_room, read_json, storage_error, write_json

SCHEMA = 2
BLOCK = 128  # images per task of the thread pool
CHECKSUM_BLOCK = 1024  # images read at once when a store is verified
PATIENCE = 0.2  # seconds until a signal is heeded while threads decode

logger = logging.getLogger("sseg_nase")

ImageItem = tuple["Path | np.ndarray", int]


@dataclass(frozen=True)
class Listing:
    """What a store is built from: `items` are (file or uint8 array `[H, W(, 3)]`, label) pairs.

    `notes` go into the manifest. With another `load(image, image_size, channels, reading)` than
    that of photographs the images may be whatever it takes; it is called in several threads.
    """

    class_names: tuple[str, ...]
    items: Sequence[tuple[Any, int]]
    notes: Mapping[str, Any] = field(default_factory=dict)
    load: Callable[[Any, int, int, Reading], tuple[np.ndarray, Facts]] | None = None


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
        assert images.ndim == 4, images.shape
        assert images.dtype == np.uint8, images.dtype
        assert images.shape[3] in MODES, images.shape
        assert labels.shape == images.shape[:1], labels.shape
        assert labels.dtype == np.int64, labels.dtype
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
            channels = manifest.get("channels", 3)
            classes = len(manifest["classes"])
            hashes = np.load(folder / "hashes.npy", mmap_mode="r", allow_pickle=False)
            whole = (
                manifest["schema"] == SCHEMA
                and (images.shape, images.dtype) == ((n, size, size, channels), np.uint8)
                and (labels.shape, labels.dtype) == ((n,), np.int64)
                and (hashes.shape, hashes.dtype) == ((n,), np.uint64)
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

    @cached_property
    def hashes(self) -> np.ndarray:
        """A number per image, uint64 `[n]`, equal where pixels are; 0 for images of one colour."""
        if self.folder is None:
            return _comparable(hashes_of(self.images), of_one_colour(self.images))
        stored: np.ndarray = np.load(self.folder / "hashes.npy", allow_pickle=False)
        return stored

    def name_of(self, index: int) -> str:
        """Where an image came from: its file, or its class and number where it has none."""
        if index < len(self._files) and (name := self._files[index]) is not None:
            return str(name)
        return _nameless(self.class_names, self.labels, index)

    @cached_property
    def _files(self) -> list[str | None]:
        if self.folder is None:
            return []
        return list((read_json(self.folder / "files.json") or {}).get("files", []))

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
        return int(self.images.shape[1])

    @property
    def channels(self) -> int:
        """3, or 1 for grey images."""
        return int(self.images.shape[3])

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
    reading: Reading = PLAIN,
    duplicates: str = "keep",
    **described: Any,
) -> ImageStore:
    """Open the store in `folder`, building it from `read()` when it is not there yet.

    One that an earlier version has built is built again. Several processes may call this at once:
    one builds under a lock, the others wait. Images are opened as `reading` says and decoded by
    `workers` threads (0: in this one), made RGB (grey where `channels` is 1) and `image_size`
    square, and written as they come. Images with equal pixels are treated as `duplicates` says
    (drop, keep, refuse). `described` (source, layout, split, ...) goes into the manifest, and
    notices about the images. A crash leaves no store. Raises UserError naming the image that
    cannot be read, or the class without images.
    """
    folder = Path(folder)
    if folder.exists() and not outdated(folder):
        return ImageStore.open(folder)
    try:
        with locked(folder):
            if outdated(folder):
                shutil.rmtree(folder)
            if not folder.exists():
                _remove_leftovers(folder)
                form = Form(image_size, channels, reading)
                _build(folder, read(), form, workers, duplicates, described)
    except (OSError, StorageError) as error:
        why = storage_error(error, folder.parent) or f"{error}."
        raise UserError(
            f"The image store {folder} cannot be built: {why} The images must be readable, and "
            "paths.cache_dir a folder that can be written and has space."
        ) from error
    return ImageStore.open(folder)


def outdated(folder: Path) -> bool:
    """Whether `folder` has a store of an earlier version, whose pixels may be other ones."""
    schema = (read_json(Path(folder) / "manifest.json") or {}).get("schema")
    return isinstance(schema, int) and schema < SCHEMA


class Form(NamedTuple):
    """What all images of a store are made into."""

    image_size: int
    channels: int
    reading: Reading


class _Block(NamedTuple):
    """Decoded images `[n, S, S, C]` with what is known of each."""

    images: np.ndarray
    hashes: np.ndarray
    one_colour: np.ndarray
    facts: list[Facts]


def _build(
    folder: Path,
    listing: Listing,
    form: Form,
    workers: int,
    duplicates: str,
    described: Mapping[str, Any],
) -> None:
    """Write the images in their `form`."""
    labels = np.array([label for _, label in listing.items], dtype=np.int64)
    size, channels = form.image_size, form.channels
    source = str(described.get("source", folder))
    counts = np.bincount(labels, minlength=len(listing.class_names))
    assert len(counts) == len(listing.class_names)
    if not len(labels):
        raise UserError(f"There are no images in {source}.")
    for name, count in zip(listing.class_names, counts, strict=True):
        if not count:
            raise UserError(
                f"The class {name} of {source} has no images: add some or remove the class."
            )
    check_room(folder.parent, len(labels) * size * size * channels)
    logger.info("Building the image store %s from %d images", folder, len(labels))

    def name_of(index: int) -> str:
        [file] = _files_of([listing.items[index]], source)
        return file or _nameless(listing.class_names, labels, index)

    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".tmp"))
    try:
        remarks, hashes, plain = Remarks(), [], []

        def images() -> Generator[np.ndarray, None, None]:
            with closing(_decoded(listing, form, workers)) as blocks:
                for block in blocks:
                    hashes.append(block.hashes)
                    plain.append(block.one_colour)
                    remarks.add(block.facts, int(block.images.max()))
                    yield block.images

        shape = (len(labels), size, size, channels)
        with closing(images()) as decoded:  # also where writing fails: its threads end then
            checksum = _write_images(temporary / "images.npy", shape, decoded)
        hashed, one_colour = np.concatenate(hashes), np.concatenate(plain)
        remarks.check(name_of)
        verdict = examine(hashed, labels, listing.class_names, duplicates, name_of)
        notices = [
            *listing.notes.get("notices", []),
            *_without_effect(form.reading, remarks),
            *remarks.notices(name_of),
            *notices_of_one_colour(one_colour, labels, listing.class_names),
            *verdict.notices,
        ]
        kept = [int(index) for index in np.flatnonzero(verdict.kept)]
        if len(kept) < len(labels):
            checksum = _leave_out(temporary / "images.npy", kept)
        labels_kept = labels[kept]
        _write_array(temporary / "labels.npy", labels_kept)
        _write_array(temporary / "hashes.npy", _comparable(hashed, one_colour)[kept])
        files = _files_of([listing.items[index] for index in kept], source)
        if any(file is not None for file in files):
            (temporary / "files.json").write_text(json.dumps({"files": files}), encoding="ascii")
        found = next(iter(remarks.sizes), None)
        original = {} if found is None else {"original_size": [*found]}
        manifest = _manifest(
            listing.class_names,
            (len(kept), size, size, channels),
            {"images": checksum, "labels": _sha256(labels_kept)},
            {
                **described,
                **listing.notes,
                "notices": notices,
                "listed": len(labels),
                "copies": verdict.copies,
                "in_several_classes": verdict.two_labels,
                "left_out": len(labels) - len(kept),
                "value_ranges": remarks.ranges(),
                **original,
            },
        )
        write_json(temporary / "manifest.json", manifest)
        temporary.chmod(folder.parent.stat().st_mode & 0o777)
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _without_effect(reading: Reading, remarks: Remarks) -> list[str]:
    if reading.value_range is None or remarks.spans:
        return []
    return ["dataset.value_range has no effect: no image has more than 8 bits."]


def _write_images(path: Path, shape: tuple[int, ...], blocks: Iterable[np.ndarray]) -> str:
    """Write blocks of images as one array of `shape`; returns the sha256 of the pixels."""
    checksum = hashlib.sha256()
    # Written front to back rather than through a memory map: a full disk is then an error
    # that can be reported, not a bus error.
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(block.data)
            checksum.update(block.data)
        _to_disk(file)
    return checksum.hexdigest()


def _leave_out(path: Path, kept: list[int]) -> str:
    """Rewrite an array of images with those at `kept` only; returns the sha256 of the pixels."""
    images = np.load(path, mmap_mode="r", allow_pickle=False)
    starts = range(0, len(kept), CHECKSUM_BLOCK)
    blocks = (np.asarray(images[kept[start : start + CHECKSUM_BLOCK]]) for start in starts)
    fewer = path.with_name("fewer.npy")
    checksum = _write_images(fewer, (len(kept), *images.shape[1:]), blocks)
    del images
    os.replace(fewer, path)
    return checksum


def _write_array(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        _to_disk(file)


def _comparable(hashes: np.ndarray, one_colour: np.ndarray) -> np.ndarray:
    return np.where(one_colour, ONE_COLOUR, hashes)


def _files_of(items: Sequence[tuple[Any, int]], source: str) -> list[str | None]:
    """The files of listed images, relative to the data set's folder; None where there is none."""
    folder, around = source + os.sep, os.path.dirname(source) + os.sep
    files: list[str | None] = []
    for image, _ in items:
        path = image if isinstance(image, Path) else getattr(image, "path", None)
        if path is None:
            files.append(None)
            continue
        text = shown(path)
        if not text.startswith(folder) and not os.path.isabs(text):
            text = os.path.abspath(text)
        for start in (folder, around):
            if text.startswith(start):
                text = text[len(start) :]
                break
        files.append(text)
    return files


def _nameless(classes: Sequence[str], labels: np.ndarray, index: int) -> str:
    label = int(labels[index])
    number = int(np.count_nonzero(labels[: index + 1] == label))
    return f"image {number} of class {classes[label]}"


def _decoded(listing: Listing, form: Form, workers: int) -> Generator[_Block, None, None]:
    """Yield the images in order, in blocks `[<= BLOCK, S, S, C]`, a few blocks ahead."""
    load = listing.load or load_with_facts
    stopped = threading.Event()

    def decode(start: int) -> _Block:
        images, facts = [], []
        for image, _ in listing.items[start : start + BLOCK]:
            if stopped.is_set():  # nobody waits for the rest, which may take a minute
                raise CancelledError
            pixels, known = load(image, *form)
            images.append(pixels)
            facts.append(known)
        block = np.stack(images)
        return _Block(block, hashes_of(block), of_one_colour(block), facts)

    starts = range(0, len(listing.items), BLOCK)
    with without_warnings():
        if workers == 0:
            yield from map(decode, starts)
            return
        pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        pending: deque[Future[_Block]] = deque()
        try:
            for start in starts:
                pending.append(pool.submit(decode, start))
                if len(pending) > 2 * workers:
                    yield _awaited(pending.popleft())
            while pending:
                yield _awaited(pending.popleft())
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _awaited(future: Future[_Block]) -> _Block:
    # In short waits: a signal that another thread has received is handled between them.
    while not wait([future], timeout=PATIENCE).done:
        pass
    return future.result()


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
