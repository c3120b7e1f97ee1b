"""How difficult the levels of the curriculum are, with images of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sseg_nase.config.groups.dataset import DatasetConfig, InMemory, OnDisk
from sseg_nase.config.members import chosen
from sseg_nase.config.options import fields_of
from sseg_nase.data.benchmarks import load_split
from sseg_nase.data.curriculum.difficulty import (
    COLOUR_WEIGHT,
    EDGE_WEIGHT,
    FREQUENCY_WEIGHT,
    difficulty,
)
from sseg_nase.data.curriculum.render import DRAWING, render
from sseg_nase.data.grey import of_channels
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.files import read_json
from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.rundir.record import RunRecord

TITLE = "Difficulty of the levels"
NATURAL = "NATURAL"
SAMPLES = 8  # images shown of a level
MEASURED = 500  # as task=curriculum
MOST_PIXELS = MEASURED * 84 * 84  # of larger images fewer are measured: it takes seconds
PARTS = (
    ("edges", EDGE_WEIGHT, style.BLUE, ""),
    ("colours", COLOUR_WEIGHT, style.ORANGE, "////"),
    ("fine detail", FREQUENCY_WEIGHT, style.GREEN, "...."),
)


class Level(NamedTuple):
    """`images` uint8 `[n, H, W, 3]` to look at; parts and score of `measured_at` of them."""

    name: str
    images: np.ndarray
    measured_at: int
    parts: tuple[float, ...]
    score: float
    ci95: float


def difficulty_per_level(record: RunRecord) -> Drawing:
    """The mean difficulty of every level, by its parts, beside some of its images."""
    names = record.setting("curriculum.levels", [])
    size = record.setting("dataset.image_size")
    if not isinstance(names, list) or not names or not isinstance(size, int):
        why = "The run's config.yaml does not tell the levels of its curriculum."
        return absent("curriculum", TITLE, why)
    if record.setting("task") == "evaluate" or record.setting("ssl.name", "none") == "none":
        return absent("curriculum", TITLE, "The run has pretrained nothing, so it saw no level.")
    levels, without = [], []
    for name in names:
        images = images_of(record, str(name), size)
        if images is None:
            without.append(str(name))
        else:
            levels.append(measured(str(name), images))
    if not levels:
        why = f"The images of {style.first(without, 5)} cannot be had as they were at that time."
        return absent("curriculum", TITLE, why)
    with style.applied():
        figure = style.page(0.6 + 0.5 * len(levels))
        left, right = figure.subplots(
            1, 2, width_ratios=[1.9, 1], gridspec_kw={"wspace": 0.02}, sharey=True
        )
        _draw_samples(left, levels)
        _draw_bars(right, levels)
        handles = [
            Patch(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0,
                  label=f"{weight:g} × {name}")
            for name, weight, colour, hatch in PARTS
        ]  # fmt: skip
        style.legend_below(figure, handles)
        _make_square(left, len(levels))
    count = max(level.measured_at for level in levels)
    caption = (
        f"Images of every level, and their difficulty (no unit, 0 to 1): "
        f"{EDGE_WEIGHT:g} × edge density + {COLOUR_WEIGHT:g} × colour variance + "
        f"{FREQUENCY_WEIGHT:g} × share of high frequencies, mean ± 95 % CI over the first "
        f"{count} images at {size} px."
    )
    if without:
        caption += (
            f" Not shown: {style.first(without, 5)}, whose images cannot be had as they were."
        )
    return Drawing("curriculum", TITLE, caption, figure)


def images_of(record: RunRecord, level: str, size: int) -> torch.Tensor | None:
    """The first images of a level as the run saw them, uint8 `[n, C, S, S]`; None where lost."""
    count = max(SAMPLES, min(MEASURED, MOST_PIXELS // size**2))
    channels = record.setting("dataset.channels", 3)
    if level == NATURAL:
        store = natural_images(record)
        if store is None:
            return None
        chosen = np.linspace(0, len(store) - 1, min(count, len(store))).astype(np.int64)
        return store.batch(chosen)
    if record.section("data").get("drawing", DRAWING) != DRAWING:
        return None  # another version drew them
    try:
        drawn = render(
            level,
            torch.arange(count),
            seed=record.setting("seed", 0),
            image_size=size,
            device="cpu",
        )
    except UserError:  # a level of another version
        return None
    return of_channels(drawn, channels)


def natural_images(record: RunRecord) -> ImageStore | None:
    """The base images that the run trained on, if they can be had without reading them again."""
    known: Mapping[str, Any] = record.setting("dataset", {})
    kind = chosen(DatasetConfig, known)
    if not issubclass(kind, (InMemory, OnDisk)):  # of a package that is not here any more
        return None
    values = {name: known.get(name) for name, *_ in fields_of(kind)}
    values["channels"] = values["channels"] or 3  # which older runs do not name
    dataset = kind(**cast(Any, values))
    data_dir, cache_dir = (
        Path(record.setting(f"paths.{name}", name)).expanduser()
        for name in ("data_dir", "cache_dir")
    )
    if isinstance(dataset, OnDisk) and not _at_hand(dataset, data_dir, cache_dir):
        return None
    try:
        store = load_split(
            dataset, dataset.natural, data_dir=data_dir, cache_dir=cache_dir, workers=0
        )
    except UserError:
        return None
    return store if _are_the_same(store, f"{dataset.name}/{dataset.natural}", record) else None


def _are_the_same(store: ImageStore, key: str, record: RunRecord) -> bool:
    """Whether these are the images that the run has recorded; older runs have recorded none."""
    trained = record.section("data").get("trained")
    known = [
        one.get("sha256")
        for one in (trained if isinstance(trained, list) else [])
        if isinstance(one, dict) and one.get("key") == key
    ]
    return not known or store.manifest["sha256"] in known


def _at_hand(dataset: OnDisk, data_dir: Path, cache_dir: Path) -> bool:
    """Whether the images are stored, and lie where the run looked: nothing is downloaded then."""
    roots = [Path(dataset.root).expanduser()] if dataset.root else [data_dir]
    for manifest in (cache_dir / "stores").glob(f"{dataset.name}-train-*/manifest.json"):
        source = Path(str((read_json(manifest) or {}).get("source", "")))
        if source.exists() and any(source.is_relative_to(root.resolve()) for root in roots):
            return True
    return False


def measured(name: str, images: torch.Tensor) -> Level:
    """What is shown of a level, from its images uint8 `[n, C, S, S]`."""
    colours = images.expand(-1, 3, -1, -1)
    found = difficulty(colours)
    means = [found.edge_density, found.colour_variance, found.high_frequency]
    n = len(images)
    ci95 = 1.96 * found.score.std().item() / n**0.5 if n > 1 else 0.0
    # Over the whole of them: base images stand class by class.
    shown = colours[
        torch.linspace(0, n - 1, min(SAMPLES, n)).long() if name == NATURAL else slice(SAMPLES)
    ]
    return Level(
        name,
        shown.permute(0, 2, 3, 1).numpy(),
        n,
        tuple(w * mean.mean().item() for (_, w, _, _), mean in zip(PARTS, means, strict=True)),
        found.score.mean().item(),
        ci95,
    )


def _draw_samples(axes: Axes, levels: Sequence[Level]) -> None:
    """A strip of images per level; a unit of y is a level, and an image is square."""
    margin = 0.06
    for row, level in enumerate(levels):
        for column, image in enumerate(level.images):
            axes.imshow(
                image,
                extent=(column + margin, column + 1 - margin, row + 0.44, row - 0.44),
                aspect="auto",
                interpolation="nearest" if image.shape[0] <= 64 else "antialiased",
            )
    axes.set_xlim(0, SAMPLES)
    axes.set_ylim(len(levels) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks(range(len(levels)), [level.name for level in levels])
    axes.tick_params(length=0)
    axes.set_xlabel("sample images")
    for spine in axes.spines.values():
        spine.set_visible(False)


def _make_square(axes: Axes, rows: int) -> None:
    """Give the figure the height at which the images are as high as wide."""
    figure = cast(Figure, axes.get_figure())
    figure.draw_without_rendering()
    box = axes.get_window_extent()
    missing = (box.width / SAMPLES - box.height / rows) / figure.dpi
    figure.set_figheight(figure.get_figheight() + rows * missing)


def _draw_bars(axes: Axes, levels: Sequence[Level]) -> None:
    for row, level in enumerate(levels):
        start = 0.0
        for (name, _, colour, hatch), part in zip(PARTS, level.parts, strict=True):
            axes.barh(
                row, part, left=start, height=0.55, color=colour, hatch=hatch, edgecolor="white",
                linewidth=0, gid=name,
            )  # fmt: skip
            start += part
        axes.errorbar(
            [level.score], [row], xerr=[level.ci95], color=style.BLACK, capsize=2.5, linewidth=1,
        )  # fmt: skip
        axes.annotate(
            f"{level.score:.3f}", (level.score + level.ci95, row), xytext=(4, 0),
            textcoords="offset points", va="center", fontsize=style.SMALL,
        )  # fmt: skip
    axes.set_xlim(0, 1.32 * max(level.score + level.ci95 for level in levels))
    axes.set_xlabel("difficulty (no unit, 0 to 1)")
    axes.tick_params(axis="y", length=0, labelleft=False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
