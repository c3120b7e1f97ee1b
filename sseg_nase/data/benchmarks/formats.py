"""Files of arrays that published data sets come in: IDX, SVHN's .mat, STL-10's .bin.

They are read here and not by torchvision's classes, which take no file but the one that they have a
checksum of. Nothing in a file is run. What is cut, damaged or something else is one `UserError`.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from sseg_nase.errors import UserError, shown

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
GZIP = ".gz"
AGAIN = "Download it again."


def packed_or_not(path: Path) -> Path | None:
    """`path`, or the same file packed by gzip; None where neither is there."""
    for file in (path, path.with_name(path.name + GZIP)):
        if file.is_file():
            return file
    return None


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """The array of an IDX file of MNIST and its kin, packed by gzip or not.

    A header of two zero bytes, the type, the number of dimensions and their sizes, big-endian, then
    the entries. Raises `UserError` where it is cut off, or of another number of `dimensions`.
    """
    try:
        content = file.read_bytes()
        raw = gzip.decompress(content) if file.suffix == GZIP else content
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{shown(file)} cannot be read: {error}. {AGAIN}") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES:
        raise UserError(f"{shown(file)} is no IDX file: its first bytes are others. {AGAIN}")
    kind, ndim = np.dtype(IDX_TYPES[raw[2]]), raw[3]
    if ndim != dimensions:
        raise UserError(f"{shown(file)} has {ndim} dimensions, and {dimensions} are expected.")
    begins = 4 + 4 * ndim
    shape = np.frombuffer(raw[4:begins].ljust(4 * ndim, b"\0"), ">u4").astype(int)
    needed = begins + kind.itemsize * int(shape.prod())
    if len(raw) != needed:
        raise UserError(
            f"{shown(file)} is cut off or damaged: it has {len(raw):,} bytes, and its header says "
            f"{needed:,}. {AGAIN}"
        )
    return np.frombuffer(raw, kind, offset=begins).reshape(shape)


def read_svhn(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[n, 32, 32, 3]` and digits `[n]` of SVHN's cropped digits, format 2."""
    from scipy.io import loadmat  # here, because few need it

    try:
        content = loadmat(file)
    except Exception as error:  # scipy raises what its parser meets
        raise UserError(f"{shown(file)} cannot be read: {error}. {AGAIN}") from error
    images, labels = content.get("X"), content.get("y")
    if (
        not isinstance(images, np.ndarray)
        or not isinstance(labels, np.ndarray)
        or images.dtype != np.uint8
        or images.shape[:-1] != (32, 32, 3)
        or labels.size != images.shape[-1]
    ):
        raise UserError(
            f"{shown(file)} is no file of SVHN's cropped digits: expected X uint8 [32, 32, 3, n] "
            "and y [n, 1]."
        )
    return images.transpose(3, 0, 1, 2), labels.reshape(-1).astype(np.int64) % 10  # 0 is 10 there


def read_stl10(images: Path, labels: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 `[n, 96, 96, 3]` and classes `[n]` from 0 on of STL-10's binary files.

    Theirs are `[n, 3, 96, 96]`, each channel column by column, and classes from 1 on. Without
    `labels` all are of class 0, and the file, which is of gigabytes then, is not read to RAM.
    """
    each = 3 * 96 * 96
    raw: np.ndarray
    if labels is None:
        try:
            raw = np.memmap(images, np.uint8, "r")
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise UserError(f"{shown(images)} cannot be read: {error}. {AGAIN}") from error
        truth = np.ones(len(raw) // each, np.uint8)
    else:
        raw, truth = (np.frombuffer(_bytes(file), np.uint8) for file in (images, labels))
    if len(raw) != each * len(truth):
        beside = "the images of 96 px" if labels is None else f"the labels in {labels.name}"
        raise UserError(
            f"{shown(images)} is cut off or damaged: {len(raw):,} bytes are not {each:,} for each "
            f"of the {len(truth):,} {beside}. {AGAIN}"
        )
    return raw.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1), truth.astype(np.int64) - 1


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{shown(file)} cannot be read: {error}.") from error
