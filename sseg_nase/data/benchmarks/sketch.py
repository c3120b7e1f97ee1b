"""Anyone's line drawings in class sub-folders of `dataset.root`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sseg_nase.config.groups.dataset import Sketch
from sseg_nase.data.benchmarks import folder
from sseg_nase.data.benchmarks.drawings import as_drawings
from sseg_nase.data.benchmarks.layouts import Found


def find(dataset: Sketch, data_dir: Path, cache_dir: Path) -> Found:
    """As `folder.find`, the images read as drawings; `dataset.invert` exchanges dark and light."""
    found, invert = folder.find(dataset, data_dir, cache_dir), dataset.invert
    splits = {split: as_drawings(source, invert=invert) for split, source in found.splits.items()}
    return replace(found, splits=splits, options={**found.options, "invert": invert})
