"""Tiny closed sets in their official formats."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

CIFAR10 = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def pictures(labels: np.ndarray, side: int, channels: int, seed: int) -> np.ndarray:
    """uint8 `[n, side, side, channels]`, classes told apart by their brightness."""
    noise = np.random.default_rng(seed).integers(0, 24, (len(labels), side, side, channels))
    return (noise + 20 * (labels % 11)[:, None, None, None]).astype(np.uint8)


def labels_of(classes: int, each: int, seed: int) -> np.ndarray:
    """int64 `[classes · each]`, in random order."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), each))


def cifar10(folder: Path, *, train: int = 10, test: int = 2) -> Path:
    """The python archive, unpacked: `train` images of each class in five batches, and `test`."""
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    (base / "batches.meta").write_bytes(pickle.dumps({b"label_names": [*map(str.encode, CIFAR10)]}))
    labels = labels_of(10, train, 0)
    parts = [(f"data_batch_{n + 1}", part) for n, part in enumerate(np.array_split(labels, 5))]
    for seed, (name, truth) in enumerate([*parts, ("test_batch", labels_of(10, test, 1))]):
        flat = pictures(truth, 32, 3, seed).transpose(0, 3, 1, 2).reshape(len(truth), -1)
        content = {b"data": flat, b"labels": truth.tolist(), b"filenames": []}
        (base / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def cifar100(folder: Path, classes: int = 5) -> Path:
    base = folder / "cifar-100-python"
    base.mkdir(parents=True)
    names = [f"fine{n}".encode() for n in range(classes)]
    (base / "meta").write_bytes(pickle.dumps({b"fine_label_names": names}))
    for seed, (name, each) in enumerate((("train", 4), ("test", 2))):
        truth = labels_of(classes, each, seed)
        flat = pictures(truth, 32, 3, seed).transpose(0, 3, 1, 2).reshape(len(truth), -1)
        content = {
            b"data": flat,
            b"fine_labels": truth.tolist(),
            b"coarse_labels": [0] * len(truth),
        }
        (base / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def idx(values: np.ndarray) -> bytes:
    """An IDX file: uint8 as ubyte, int32 as int."""
    kind = {"uint8": 8, "int32": 12}[values.dtype.name]
    header = bytes([0, 0, kind, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def write(file: Path, content: bytes, packed: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
    else:
        file.write_bytes(content)


def mnist(folder: Path, name: str = "MNIST", *, packed: bool = False) -> Path:
    """MNIST, Fashion-MNIST or KMNIST."""
    for seed, (part, each) in enumerate((("train", 4), ("t10k", 2))):
        truth = labels_of(10, each, seed)
        images = pictures(truth, 28, 1, seed)[..., 0]
        raw = folder / name / "raw"
        write(raw / f"{part}-images-idx3-ubyte", idx(images), packed)
        write(raw / f"{part}-labels-idx1-ubyte", idx(truth.astype(np.uint8)), packed)
    return folder


def qmnist(folder: Path) -> Path:
    for seed, (part, each) in enumerate((("train", 4), ("test", 2))):
        truth = labels_of(10, each, seed)
        table = np.zeros((len(truth), 8), np.int32)
        table[:, 0], table[:, 1] = truth, 4
        raw = folder / "QMNIST" / "raw"
        write(raw / f"qmnist-{part}-images-idx3-ubyte", idx(pictures(truth, 28, 1, seed)[..., 0]))
        write(raw / f"qmnist-{part}-labels-idx2-int", idx(table))
    return folder


def emnist(folder: Path, variant: str, classes: int, first: int = 0) -> Path:
    """Images whose first row, before they are set upright, is bright."""
    for seed, (part, each) in enumerate((("train", 3), ("test", 2))):
        truth = labels_of(classes, each, seed)
        images = pictures(truth, 28, 1, seed)[..., 0]
        images[:, 0] = 255
        raw, stem = folder / "EMNIST" / "raw", f"emnist-{variant}-{part}"
        write(raw / f"{stem}-images-idx3-ubyte", idx(images))
        write(raw / f"{stem}-labels-idx1-ubyte", idx((truth + first).astype(np.uint8)))
    return folder


def svhn(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for seed, (part, each) in enumerate((("train", 4), ("test", 2))):
        truth = labels_of(10, each, seed)
        images = pictures(truth, 32, 3, seed).transpose(1, 2, 3, 0)
        y = np.where(truth == 0, 10, truth).astype(np.uint8)[:, None]
        savemat(folder / f"{part}_32x32.mat", {"X": images, "y": y})
    return folder


def stl10(folder: Path) -> Path:
    base = folder / "stl10_binary"
    base.mkdir(parents=True)
    (base / "class_names.txt").write_text("".join(f"{name}\n" for name in CIFAR10))
    for seed, (part, each) in enumerate((("train", 3), ("test", 2))):
        truth = labels_of(10, each, seed)
        images = pictures(truth, 96, 3, seed)
        images[:, 0] = 250  # the first row
        (base / f"{part}_X.bin").write_bytes(images.transpose(0, 3, 2, 1).tobytes())
        (base / f"{part}_y.bin").write_bytes((truth + 1).astype(np.uint8).tobytes())
    return folder


def image(file: Path, value: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pictures(np.array([value]), 12, 3, value)[0]).save(file)


def dtd(folder: Path) -> Path:
    for place, split in enumerate(("train", "val", "test")):
        lines = []
        for label, name in enumerate(("banded", "dotted", "woven")):
            for number in range(2):
                file = f"{name}/{name}_{place}{number}.png"
                image(folder / "dtd" / "images" / file, 100 * place + 10 * label + number)
                lines.append(file)
        list_ = folder / "dtd" / "labels" / f"{split}1.txt"
        list_.parent.mkdir(exist_ok=True)
        list_.write_text("\n".join(lines) + "\n")
    return folder


def gtsrb(folder: Path) -> Path:
    base = folder / "gtsrb"
    for label in range(3):
        for number in range(4):
            image(
                base / f"GTSRB/Training/{label:05d}/{label:05d}_{number:05d}.ppm",
                20 * label + number,
            )
        (base / f"GTSRB/Training/{label:05d}/GT-{label:05d}.csv").write_text("Filename;ClassId\n")
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number in range(6):
        image(base / f"GTSRB/Final_Test/Images/{number:05d}.ppm", 120 + number)
        rows.append(f"{number:05d}.ppm;12;12;1;1;11;11;{number % 3}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n")
    return folder
