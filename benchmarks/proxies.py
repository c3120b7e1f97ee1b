"""Zero-cost scores on real cells of NAS-Bench-201 beside their accuracy after 200 epochs.

    python benchmarks/proxies.py TABLE.csv.xz IMAGES [--cells N] [--batch B] [--seeds N]

`IMAGES` is a folder with a folder per class (CIFAR-10's), or an .npz with `images` [n, 32, 32, 3]
and `labels`. The cells are drawn, seed 0, from those with a published `c10_zc_nwot`: none of their
operations is unreachable. The answer is Spearman's rank correlation with `c10_test200` and its 95 %
interval by bootstrap over cells. Whatever is measured stays in FOLDER/proxies.json and is not
measured again.
"""

from __future__ import annotations

import argparse
import csv
import json
import lzma
import os
import time
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from sseg_nase.files import write_json, write_text
from sseg_nase.search.proxies import SCORES, measure
from sseg_nase.spaces import NB201

PUBLISHED = {  # Spearman over 9,445 cells, NAS-Bench-Suite-Zero's scores
    "nwot": 0.811,
    "jacov": 0.799,
    "params": 0.799,
    "synflow": 0.778,
    "epe_nas": 0.772,
    "macs": 0.770,
    "l2_norm": 0.746,
    "snip": 0.603,
    "grad_norm": 0.600,
    "fisher": 0.552,
    "grasp": 0.537,
    "zen": 0.115,
    "plain": -0.352,
}
DRAWS = 2000
LEAST = 30  # cells; of fewer no correlation is told


def batch_of(path: Path, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images in [-1, 1] and labels, as many of every class as possible, no image twice."""
    if path.suffix == ".npz":
        with np.load(path) as data:
            pixels, labels = data["images"], data["labels"]
    else:
        from PIL import Image

        folders = sorted(each for each in path.iterdir() if each.is_dir())
        each = -(-size // len(folders))
        found = [
            (np.asarray(Image.open(file).convert("RGB")), label)
            for label, folder in enumerate(folders)
            for file in sorted(folder.iterdir())[:each]
        ]
        pixels, labels = np.stack([f[0] for f in found]), np.array([f[1] for f in found])
    chosen = np.random.default_rng(0).permutation(len(pixels))[:size]
    images = torch.from_numpy(pixels[chosen]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images.contiguous(), torch.from_numpy(labels[chosen]).long()


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Return the rank correlation; equal values share their mean rank."""
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def interval(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval by bootstrap over cells."""
    rng = np.random.default_rng(0)
    found = [
        spearman(one[at], other[at]) for at in rng.integers(0, len(one), size=(DRAWS, len(one)))
    ]
    low, high = np.percentile(found, [2.5, 97.5])
    return float(low), float(high)


def cells_of(table: Path, count: int) -> list[dict[str, str]]:
    """Return rows of the table, drawn with seed 0."""
    with lzma.open(table, "rt") if table.suffix == ".xz" else table.open() as file:
        rows = [row for row in csv.DictReader(file) if row["c10_zc_nwot"]]
    return Random(0).sample(rows, min(count, len(rows)))


def main() -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--scores", nargs="+", default=list(SCORES), choices=list(SCORES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("bench"))
    asked = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    space = NB201()
    images, labels = (part.to(asked.device) for part in batch_of(asked.images, asked.batch))
    kept = asked.out / "proxies.json"
    setting = {"batch": asked.batch, "seeds": asked.seeds, "images": asked.images.name}
    known: dict[str, Any] = {"setting": setting, "cells": {}}
    if kept.exists():
        before = json.loads(kept.read_text(encoding="utf-8"))
        known = before if before["setting"] == setting else known
    rows = cells_of(asked.table, asked.cells)
    for number, row in enumerate(rows, 1):
        cell = known["cells"].setdefault(row["arch"], {})
        missing = [name for name in asked.scores if name not in cell]
        if missing:
            started = time.perf_counter()
            description = space.describe(space.from_string(row["arch"]))
            cell |= measure(missing, description, images, labels, range(asked.seeds))
            write_json(kept, known)
            print(f"{number}/{len(rows)} {time.perf_counter() - started:.1f} s", flush=True)
    write_text(asked.out / "proxies.md", report(rows, known, asked))


def report(rows: list[dict[str, str]], known: dict[str, Any], asked: argparse.Namespace) -> str:
    """Return the table as Markdown."""
    lines = [
        "# Zero-cost scores on cells of NAS-Bench-201",
        "",
        f"{len(rows)} cells drawn with seed 0 from the 9,445 without unreachable operations; "
        f"networks of 15 cells at 32×32 with random weights of {asked.seeds} seed(s); one batch of "
        f"{asked.batch} CIFAR-10 training images, batch statistics. Spearman's rank correlation "
        "with test accuracy after 200 epochs, 95 % interval by bootstrap over cells. *table*: the "
        "scores that NAS-Bench-Suite-Zero published, on the same cells; *all*: on all 9,445. "
        "`params` is the line to beat.",
        "",
        "| score | cells | Spearman | 95 % | table | all | with the table's own |",
        "|---|---|---|---|---|---|---|",
    ]
    found = []
    for name in SCORES:
        has = [row for row in rows if name in known["cells"].get(row["arch"], {})]
        if len(has) < LEAST:
            continue
        values = np.array([known["cells"][row["arch"]][name] for row in has])
        accuracy = np.array([float(row["c10_test200"]) for row in has])
        column = name if name in ("params", "macs") else f"c10_zc_{name}"
        theirs = np.array([float(row[column]) for row in has])
        low, high = interval(values, accuracy)
        rank = spearman(values, accuracy)
        found.append(
            (
                rank,
                f"| {name} | {len(has)} | {rank:.3f} | {low:.3f} to {high:.3f} "
                f"| {spearman(theirs, accuracy):.3f} | {PUBLISHED[name]:.3f} "
                f"| {spearman(values, theirs):.3f} |",
            )
        )
    lines += [line for _, line in sorted(found, reverse=True)]
    lines += [
        "",
        "Made by `python benchmarks/proxies.py TABLE IMAGES`. Within the best tenth of all cells "
        "no score ranks well: they sort out what is bad, and do not pick winners.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
