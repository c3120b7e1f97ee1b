"""Finding one of the known data sets below `paths.data_dir`, or in `dataset.root`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sseg_nase.config.groups.dataset import OnDisk
from sseg_nase.data.benchmarks.layouts import (
    ARCHIVES,
    HOW_TO_POINT,
    Detector,
    Found,
    first_found,
    named_folders,
    required_root,
)
from sseg_nase.errors import UserError, shown


def find_known(
    dataset: OnDisk,
    data_dir: Path,
    *,
    names: Sequence[str],
    detectors: Sequence[Detector],
    loose: Sequence[Detector] = (),
    samples: Sequence[str] = (),
    archives: Sequence[str] = (),
    accepted: str,
) -> Found | None:
    """The data set in `dataset.root`, else in a folder of `names` below `data_dir`; None if none.

    `detectors` look into such a folder, `loose` ones (whose file names speak for themselves) also
    into `data_dir`; folders of `samples` count only when there is nothing else. Raises UserError
    when `dataset.root` is set and holds no known layout (`accepted`); it names an archive to unpack
    there, which is called as the data set or as one of `archives`.
    """
    if dataset.root:
        root = required_root(dataset.root, accepted)
        below = [root, *named_folders(root, [*names, *samples])]
        found = first_found((folder, detectors) for folder in below)
        if found is None:
            archive = packed(root, [*names, *samples, *archives])
            there = f" There is {shown(archive)}: unpack it there." if archive else ""
            raise UserError(
                f"dataset.root={dataset.root} holds none of the layouts: {accepted}.{there}"
            )
        return found
    return first_found(
        [
            *((folder, detectors) for folder in named_folders(data_dir, names)),
            (data_dir, loose),
            *((folder, detectors) for folder in named_folders(data_dir, samples)),
        ]
    )


def not_found(
    dataset: OnDisk,
    data_dir: Path,
    looked_for: str,
    names: Sequence[str] = (),
    more: str = "",
    archive: Path | None = None,
) -> UserError:
    """The error for a data set that is nowhere: what was looked for where, and what to do.

    It names the `archive` to unpack, which is looked for by `names` of the data set.
    """
    where = f"in {shown(data_dir.absolute())}"
    if not data_dir.is_dir():
        where += " (which does not exist)"
    if archive := archive or packed(data_dir, names):
        more = f"There is {shown(archive)}: unpack it there, then start again. {more}".strip()
    return UserError(
        f"dataset={dataset.name} was not found {where}. Looked for: {looked_for}."
        f"{' ' + more if more else ''} {HOW_TO_POINT}"
    )


def packed(data_dir: Path, names: Sequence[str]) -> Path | None:
    """An archive in `data_dir` that is called after one of `names`; None if there is none."""
    if not data_dir.is_dir():
        return None
    for path in sorted(data_dir.iterdir()):
        called = path.name.lower()
        if path.suffix.lower() in ARCHIVES and called.startswith(tuple(map(str.lower, names))):
            return path
    return None
