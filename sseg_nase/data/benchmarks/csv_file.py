"""Anyone's images listed in a CSV file: `path,label`, and perhaps `split`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sseg_nase.config.groups.dataset import SPLITS, Listed
from sseg_nase.data.benchmarks.dealing import closed
from sseg_nase.data.benchmarks.layouts import (
    Found,
    Images,
    SplitSource,
    images_source,
    required_root,
    split_classes,
    split_named,
)
from sseg_nase.data.benchmarks.lists import Row, Table, listed_images, read_table
from sseg_nase.data.benchmarks.walk import Seen, image_suffixes
from sseg_nase.errors import UserError, did_you_mean, shown

ACCEPTED = (
    "a CSV file with the header path,label or path,label,split; paths are relative to the file"
)
EMPTY_CELLS = frozenset({"nan", "none", "null", "n/a", "#n/a", "na", "<na>", "nat", "nil"})
COLUMNS = ("path", "label")
NAMED_BY = "dataset.path_column and dataset.label_column"
ByClass = Mapping[str, Sequence[Row]]


def find(dataset: Listed, data_dir: Path, cache_dir: Path) -> Found:
    """The images listed in `dataset.root`, by its split column or by a seeded class split."""
    file = required_root(dataset.root, ACCEPTED)
    if not file.is_file():
        raise UserError(
            f"dataset.root={dataset.root} is not a file.{_instead(file)} Expected: {ACCEPTED}."
        )
    if file.suffix.lower() in image_suffixes():
        raise UserError(f"dataset.root={dataset.root} is an image. Expected: {ACCEPTED}.")
    path, label = dataset.path_column, dataset.label_column
    if path == label:
        raise UserError(
            f"dataset.path_column={path} dataset.label_column={label}: one column cannot be both."
        )
    table = read_table(file, [path, label], ["split"], NAMED_BY)
    notices, options = [*table.notices, *_no_labels(table, label)], dict[str, Any]()
    if (path, label) != COLUMNS:
        options["columns"] = [path, label]
    if "split" in table.rows[0].cells:
        layout = "split column"
        by_split = _by_column(table, path, label, notices)
    elif dataset.split_by == "images":
        layout, by_split = "images", {"train": by_label(table.rows, label)}
    else:
        layout = "classes"
        options |= {"split_fractions": dataset.split_fractions, "split_seed": dataset.split_seed}
        labels = [row.cells[label] for row in table.rows]
        dealt = split_classes(labels, dataset.split_fractions, dataset.split_seed)
        split_of = {name: split for split, names in dealt.items() for name in names}
        by_split = _by_split(table.rows, [split_of[name] for name in labels], label)
    splits = {
        split: listed(file, file.parent, lambda rows=rows: (rows, []), path)  # type: ignore[misc]
        for split, rows in by_split.items()
    }
    found = Found(layout, file, splits, options=options, notices=notices)
    return closed(found, dataset) if dataset.split_by == "images" else found


def _no_labels(table: Table, label: str) -> list[str]:
    """A notice where labels are what programs write for an empty cell."""
    found = Counter(row.cells[label] for row in table.rows)
    if not (empty := [name for name in found if name.casefold() in EMPTY_CELLS]):
        return []
    count = sum(found[name] for name in empty)
    rows = "1 row is" if count == 1 else f"{count} rows are"
    return [
        f"{table.path.name}: {rows} labelled {' or '.join(sorted(empty))}, which is taken as a "
        "class. Where it means that there is no label, remove these rows."
    ]


def _instead(folder: Path) -> str:
    """What to write where `dataset.root` is a folder."""
    lists = sorted(folder.glob("*.csv"))
    if len(lists) == 1:
        return f" Its CSV file is dataset.root={shown(lists[0])}."
    return " For a folder of class folders set dataset=folder."


def _by_column(table: Table, path: str, label: str, notices: list[str]) -> dict[str, ByClass]:
    splits: list[str] = []
    variants: dict[str, str] = {}
    for row in table.rows:
        cell = row.cells["split"]
        split = split_named(cell)
        if split is None:
            raise UserError(
                f"Line {row.line} of {shown(table.path)}: the split of {row.cells[path]} is "
                f"'{cell}', expected one of {', '.join(SPLITS)}.{did_you_mean(cell, SPLITS)}"
            )
        if cell != split:
            variants.setdefault(cell, split)
        splits.append(split)
    if variants:
        said = ", ".join(f"{cell} as {split}" for cell, split in variants.items())
        notices.append(f"{table.path.name}: the split column's {said} is understood.")
    return _by_split(table.rows, splits, label)


def _by_split(rows: Sequence[Row], splits: Sequence[str], label: str) -> dict[str, ByClass]:
    pairs = list(zip(rows, splits, strict=True))
    found = {split: by_label([row for row, of in pairs if of == split], label) for split in SPLITS}
    return {split: classes for split, classes in found.items() if classes}


def listed(
    file: Path,
    base: Path,
    read: Callable[[], tuple[ByClass, Sequence[str]]],
    column: str = "path",
) -> SplitSource:
    """A split of the images that rows of `file` name in `column`, relative to `base`.

    `read` gives the rows by class, and notices; it is called once.
    """
    read = cache(read)

    def find() -> Images:
        classes, notices = read()
        entries = [(row.line, row.cells[column]) for rows in classes.values() for row in rows]
        seen, more = listed_images(file, base, entries)
        images, start = dict[str, Sequence[Seen]](), 0
        for name, rows in classes.items():
            images[name] = seen[start : start + len(rows)]
            start += len(rows)
        return Images(images, [*notices, *more])

    return images_source(lambda: sorted(read()[0]), find)


def by_label(rows: Sequence[Row], label: str = "label") -> dict[str, list[Row]]:
    """The rows by their label, each in the order of the file."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.cells[label], []).append(row)
    return found
