"""Anyone's images listed in a CSV file: `path,label`, and perhaps `split`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sseg_nase.config.schema import SPLITS, DatasetConfig
from sseg_nase.data.benchmarks.layouts import (
    Found,
    SplitSource,
    listing_of,
    read_csv,
    required_root,
    split_classes,
)
from sseg_nase.errors import UserError, did_you_mean

ACCEPTED = (
    "a CSV file with the header path,label or path,label,split; paths are relative to the file"
)


def find(dataset: DatasetConfig, data_dir: Path, cache_dir: Path) -> Found:
    """The images listed in `dataset.root`, by its split column or by a seeded class split."""
    file = required_root(dataset, ACCEPTED)
    if not file.is_file():
        raise UserError(f"dataset.root={dataset.root} is not a file. Expected: {ACCEPTED}.")
    rows = read_csv(file, ["path", "label"])
    by_split: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    options: dict[str, Any] = {}
    if "split" in rows[0]:
        layout = "split column"
        for row in rows:
            split = row["split"] or ""
            if split not in SPLITS:
                raise UserError(
                    f"The split of {row['path']} in {file} is '{split}', expected one of "
                    f"{', '.join(SPLITS)}.{did_you_mean(split, SPLITS)}"
                )
            by_split[split][row["label"]].append(file.parent / row["path"])
    else:
        layout = "classes"
        options = {"split_fractions": dataset.split_fractions, "split_seed": dataset.split_seed}
        dealt = split_classes(
            (row["label"] for row in rows), dataset.split_fractions, dataset.split_seed
        )
        split_of = {name: split for split, names in dealt.items() for name in names}
        for row in rows:
            by_split[split_of[row["label"]]][row["label"]].append(file.parent / row["path"])
    splits = {split: _listed(file, by_split[split]) for split in SPLITS if split in by_split}
    return Found(layout, file, splits, options=options)


def _listed(file: Path, classes: Mapping[str, Sequence[Path]]) -> SplitSource:
    images = [image for listed in classes.values() for image in listed]
    return SplitSource([file, *images], lambda: sorted(classes), lambda: listing_of(classes))
