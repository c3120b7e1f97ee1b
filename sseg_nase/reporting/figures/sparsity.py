"""What NASE pruned: channels of every block, one pruning after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sseg_nase.finite import finite
from sseg_nase.kinds import kinds
from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.rundir.record import RunRecord

TITLE = "Channels pruned per block"


class Pruning(NamedTuple):
    """One PRUNE: `before` and `after` are the channels of every block that there was."""

    epoch: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    accepted: bool


def prunings_of(mutations: Sequence[Mapping[str, Any]]) -> list[Pruning]:
    """Those that took channels, in order."""
    return [
        Pruning(
            line["epoch"],
            tuple(line["before"]["channels"]),
            tuple(line["after"]["channels"]),
            line["accepted"],
        )
        for line in mutations
        if (kind := kinds().get(line["kind"])) is not None
        and kind.removes
        and len(line["before"]["channels"]) == len(line["after"]["channels"])
    ]


def removed_over_run(
    prunings: Sequence[Pruning], channels: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Channels pruned for good of every block, and those that it has in the end."""
    removed = [0] * len(channels)
    for one in prunings:
        if one.accepted:
            for block, (before, after) in enumerate(zip(one.before, one.after, strict=True)):
                removed[block] += before - after
    return removed, list(channels)


def pruned_channels(record: RunRecord) -> Drawing:
    """A row per PRUNE and one for the whole run, a column per block; dark: much was taken."""
    prunings = prunings_of(record.mutations)
    if not prunings:
        enabled = record.setting("sparsity.enabled")
        why = "NASE has pruned nothing in this run."
        if enabled is False:
            why = "NASE is switched off in this run (sparsity.enabled=false): nothing was pruned."
        return absent("sparsity", TITLE, why)
    channels = _last_channels(record)
    blocks = len(channels)
    removed, left = removed_over_run(prunings, channels)
    shares, texts, names = _rows(prunings, removed, left)
    with style.applied():
        height = 0.5 + 0.27 * len(shares)
        width = min(style.PAGE, max(style.COLUMN + 0.6, 1.9 + 0.55 * blocks + 0.7))
        figure = style.page(height, width)
        axes = figure.subplots()
        image = axes.imshow(
            np.ma.masked_invalid(np.array(shares)), cmap="Greens", vmin=0,
            vmax=max(50.0, float(np.nanmax(shares)) * 1.15), aspect="auto",
            interpolation="nearest",
        )  # fmt: skip
        for row, line in enumerate(texts):
            for block, text in enumerate(line):
                share = shares[row][block]
                dark = np.isfinite(share) and share > 0.6 * image.get_clim()[1]
                axes.text(
                    block, row, text, ha="center", va="center", fontsize=style.SMALL,
                    color="white" if dark else style.BLACK,
                )  # fmt: skip
        axes.axhline(len(shares) - 1.5, color=style.BLACK, linewidth=0.8)
        axes.set_xticks(range(blocks), [str(block + 1) for block in range(blocks)])
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.set_xlabel("block")
        figure.colorbar(image, ax=axes, pad=0.01, aspect=14).set_label(
            "removed (%)", fontsize=style.SMALL
        )
    total, ever = sum(removed), sum(removed) + sum(left)
    caption = (
        f"Channels of every block before → after each pruning, and over the whole run: {total} of "
        f"{ever} channels that there ever were ({100 * total / max(ever, 1):.1f} %) "
        "were removed for good. Dots: a block that lost none; empty: a block that was not there "
        "yet."
    )
    target = record.setting("sparsity.ratio")
    if finite(target):
        caption += f" Asked for: {100 * target:g} % (sparsity.ratio)."
    if any(not one.accepted for one in prunings):
        caption += " What was rolled back does not count."
    return Drawing("sparsity", TITLE, caption, figure)


def _rows(
    prunings: Sequence[Pruning], removed: Sequence[int], left: Sequence[int]
) -> tuple[list[list[float]], list[list[str]], list[str]]:
    """Shares in percent, what is written in each cell, and the names of the rows."""
    blocks = max(len(left), *(len(one.before) for one in prunings))
    shares, texts, names = [], [], []
    for one in prunings:
        share, text = [np.nan] * blocks, [""] * blocks
        for block, (before, after) in enumerate(zip(one.before, one.after, strict=True)):
            share[block] = 100 * (before - after) / max(before, 1)
            text[block] = f"{before}→{after}" if after != before else "·"
        shares.append(share)
        texts.append(text)
        back = "" if one.accepted else "\n(rolled back)"
        names.append(f"after epoch {one.epoch + 1}{back}")
    share, text = [np.nan] * blocks, [""] * blocks
    for block, (gone, there) in enumerate(zip(removed, left, strict=True)):
        share[block] = 100 * gone / max(gone + there, 1)
        text[block] = f"{share[block]:.0f} %" if gone else "·"
    return [*shares, share], [*texts, text], [*names, "whole run"]


def _last_channels(record: RunRecord) -> list[int]:
    """Of the network as it was last known."""
    last = record.mutations[-1]
    return list(last["after"]["channels"] if last["accepted"] else last["before"]["channels"])
