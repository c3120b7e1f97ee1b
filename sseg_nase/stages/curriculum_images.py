"""The images of the curriculum as files, for use elsewhere: `curriculum.export=DIR`.

DIR gets a folder per level with `000000.png`, … and `images.csv`, one line per image, which is
written last: a folder with it is whole. The same config gives the same files.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path

import torch

from sseg_nase.config.groups.curriculum import LEVELS
from sseg_nase.config.schema import Config
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.curriculum.scenes import STYLES, TWIN_EDITS, scenes, twin_attributes
from sseg_nase.data.curriculum.shapes import SHAPES
from sseg_nase.data.grey import of_channels
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError, shown
from sseg_nase.files import OWN, check_room, make_own, write_text, writing
from sseg_nase.stages.setup import images_of

TABLE = "images.csv"
BATCH = 256  # images drawn at once
_PICTURE = re.compile(r"\d{6,}\.png")


@dataclass(frozen=True)
class Row:
    """An image of the export, as images.csv tells it; empty is what it does not have.

    `file` within the folder; `index` within its level; `seed` that it was drawn with; `label`: the
    class of a real image; `shapes` of a drawn one, those behind first; `twin`: the index of the
    image of ADVERSARIAL that differs from it in `differs_in` alone.
    """

    file: str
    level: str
    index: int
    seed: int | str = ""
    label: str = ""
    shapes: str = ""
    twin: int | str = ""
    differs_in: str = ""


def check_export(folder: Path) -> None:
    """Raise `UserError` where `folder` holds anything but an earlier export, which is replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"curriculum.export={folder}: this is a file; give a folder.")
    strange = next(_strange(folder), None)
    if strange is None and not (folder / OWN).exists():
        strange = next(folder.iterdir(), None)
    if strange is not None:
        raise UserError(
            f"curriculum.export={folder}: it holds {shown(strange.name)}, which is no image of an "
            "earlier export; give a new or an empty folder."
        )


def _strange(folder: Path) -> Iterator[Path]:
    """What no export has written there."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink() and entry.name in LEVELS:
            yield from (one for one in sorted(entry.iterdir()) if not _PICTURE.fullmatch(one.name))
        elif entry.name not in (OWN, TABLE) and not entry.name.startswith(f".{TABLE}."):
            yield entry


def export_curriculum(config: Config, folder: Path) -> dict[str, int]:
    """Write all distinct images of every level to `folder`; how many, by level.

    Drawn levels have `curriculum.images.<LEVEL>` of them, NATURAL all of its images. Raises
    `UserError` for a folder with content of others, `StorageError` where there is no room.
    """
    check_export(folder)
    levels, counts, natural = config.curriculum.levels, dict(config.curriculum.images), None
    if "NATURAL" in levels:
        natural = images_of(config, config.dataset, config.dataset.natural)
        counts["NATURAL"] = len(natural)
    counts = {level: counts[level] for level in levels}
    size, channels = config.dataset.image_size, config.dataset.channels
    check_room(folder, sum(counts.values()) * channels * size**2)
    with writing(folder):
        make_own(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_earlier(folder)
        rows: list[Row] = []
        for level, count in counts.items():
            (folder / level).mkdir()
            for first in range(0, count, BATCH):
                indices = torch.arange(first, min(first + BATCH, count))
                if level == "NATURAL":
                    assert natural is not None
                    images, told = natural.batch(indices), _of_natural(natural, indices)
                else:
                    drawn = render(level, indices, seed=config.seed, image_size=size)
                    images = of_channels(drawn, channels)
                    told = _of_drawn(level, indices, config.seed)
                _save(folder, images, told)
                rows += told
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(field.name for field in fields(Row))
    table.writerows(astuple(row) for row in rows)
    write_text(folder / TABLE, text.getvalue())
    return counts


def _remove_earlier(folder: Path) -> None:
    """The table first: without it what is left is no whole export."""
    for table in (folder / TABLE, *folder.glob(f".{TABLE}.*")):  # of one that was killed, too
        table.unlink(missing_ok=True)
    for level in LEVELS:
        for picture in (folder / level).glob("*.png"):
            picture.unlink()
        with suppress(FileNotFoundError):
            (folder / level).rmdir()


def _save(folder: Path, images: torch.Tensor, rows: Sequence[Row]) -> None:
    """Images uint8 `[B, C, S, S]` as PNG."""
    from PIL import Image

    for picture, row in zip(images.permute(0, 2, 3, 1).contiguous().numpy(), rows, strict=True):
        grey = picture.shape[2] == 1
        Image.fromarray(picture[..., 0] if grey else picture).save(folder / row.file, format="PNG")


def _file(level: str, index: int) -> str:
    return f"{level}/{index:06d}.png"


def _of_natural(store: ImageStore, indices: torch.Tensor) -> list[Row]:
    names = store.class_names
    return [
        Row(_file("NATURAL", i), "NATURAL", i, label=names[store.labels[i]])
        for i in indices.tolist()
    ]


def _of_drawn(level: str, indices: torch.Tensor, seed: int) -> list[Row]:
    scene, names = scenes(level, indices, seed=seed), list(SHAPES)
    twins: list[str] = []
    if STYLES[level].twins:
        attributes = list(TWIN_EDITS)
        twins = [attributes[n] for n in twin_attributes(indices, seed=seed).tolist()]
    rows = []
    for place, index in enumerate(indices.tolist()):
        kinds, seen = scene.kind[place].long().tolist(), scene.visible[place].tolist()
        shapes = " ".join(names[kind] for kind, on in zip(kinds, seen, strict=True) if on)
        row = Row(_file(level, index), level, index, seed, shapes=shapes)
        rows.append(replace(row, twin=index ^ 1, differs_in=twins[place]) if twins else row)
    return rows
