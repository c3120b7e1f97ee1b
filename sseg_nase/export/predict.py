"""`task=predict`: classes learnt from a folder of photos, and what other photos are taken for."""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sseg_nase.config.options import filled
from sseg_nase.config.schema import Config
from sseg_nase.data.benchmarks.walk import (
    class_folders,
    class_images,
    image_suffixes,
    looking,
    scan,
)
from sseg_nase.errors import DONE, UserError, shown
from sseg_nase.export.teaching import classifier_of
from sseg_nase.files import write_json, write_text
from sseg_nase.home import expanded
from sseg_nase.runtime.classifier import FewShotClassifier, Prediction

WIDTH = 160


def predict(config: Config, overrides: Sequence[str], say: Callable[[str], None]) -> int:
    """Learn the classes of `config.support`, name `config.images`, and return the exit code."""
    support = support_of(filled(config.support, "support"))
    images = images_of(filled(config.images, "images"))
    classifier = classifier_of(config, overrides)
    for name, files in support.items():
        classifier.add(name, files)
    found = classifier.predict(images, threshold=config.predict.threshold)
    _show(images, found)
    if config.predict.output is not None:
        write(expanded("predict.output", config.predict.output), images, found, classifier)
        say(f"predictions: {config.predict.output}")
    return DONE


def support_of(folder: str) -> dict[str, list[Path]]:
    """The images of every class folder in `folder`. Raises `UserError` with fewer than two."""
    root = expanded("support", folder)
    if not root.is_dir():
        what = "it is a file" if root.exists() else "there is no such folder"
        raise UserError(
            f"support={folder}: {what}. Give a folder with a folder of images per class."
        )
    with looking(root):
        folders, _ = class_folders(root)
        if len(folders) < 2:
            raise UserError(
                f"support={folder}: there is one class folder, {next(iter(folders))}; to tell "
                "classes apart, two are needed."
            )
        return {
            name: [Path(seen.path) for seen in class_images(path, root)[0]]
            for name, path in folders.items()
        }


def images_of(given: Sequence[str]) -> list[Path]:
    """The images that files, folders and patterns name. Raises `UserError` where there are none."""
    found: list[Path] = []
    for text in given:
        path = expanded("images", text)
        if path.is_dir():
            with looking(path):
                inside = [Path(seen.path) for seen in scan(path).images]
            if not inside:
                raise UserError(f"images={text}: no images lie in this folder itself.")
            found += sorted(inside)
        elif path.exists():
            found.append(path)
        else:
            matching = sorted(map(Path, glob.glob(str(path)))) if glob.has_magic(text) else []
            suffixes = image_suffixes()
            matching = [one for one in matching if one.suffix.lower() in suffixes]
            if not matching:
                what = "no image matches" if glob.has_magic(text) else "there is no such file"
                raise UserError(
                    f"images={text}: {what}. Give files with commas between, a folder, or a "
                    "pattern in quotes."
                )
            found += matching
    return list(dict.fromkeys(found))


def write(
    path: Path, images: Sequence[Path], found: Prediction, classifier: FewShotClassifier
) -> None:
    """Write the predictions, with the probabilities of all classes, as CSV or JSON."""
    best = found.probabilities.max(axis=1)
    if path.suffix.lower() == ".json":
        rows = [
            {
                "image": shown(image),
                "class": name,
                "confidence": float(confidence),
                "probabilities": dict(zip(found.classes, map(float, row), strict=True)),
            }
            for image, name, confidence, row in zip(
                images, found.names, best, found.probabilities, strict=True
            )
        ]
        learnt = classifier.counts()
        write_json(path, {"schema": 1, "support": learnt, "predictions": rows})
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "class", "confidence", *found.classes])
    for image, name, row in zip(images, found.names, found.probabilities, strict=True):
        table.writerow([shown(image), name, *(f"{value:.6f}" for value in (row.max(), *row))])
    write_text(path, text.getvalue())


def _show(images: Sequence[Path], found: Prediction) -> None:
    table = Table()
    for name in ("image", "class", "confidence", "next"):
        table.add_column(name, justify="right" if name == "confidence" else "left", overflow="fold")
    for image, name, row in zip(images, found.names, found.probabilities, strict=True):
        second = int(np.argsort(row)[-2])
        table.add_row(
            Text(shown(image)),
            Text(name),
            f"{100 * row.max():.1f} %",
            Text(f"{found.classes[second]} {100 * row[second]:.1f} %"),
        )
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=WIDTH)
    console.print(table)
