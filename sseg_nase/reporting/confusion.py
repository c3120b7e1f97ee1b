"""confusion.npz and per_class.csv: how the classes fared, beside the results.json of a run.

Arrays are named as in episodes.npz, `digits/val/5w1s` and `best:digits/val/5w1s`: int64 `[C, C]`,
queries by true class and class that they were taken for; `classes:digits/val` are their names. A
line of per_class.csv is one class of one list and network, its accuracy in percent.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from sseg_nase.fewshot.confusion import ClassRow, Confusion
from sseg_nase.files import replacing, write_text
from sseg_nase.reporting.episodes import PREFIXES

COUNTS, CLASSES = "confusion.npz", "per_class.csv"
NAMES = "classes:"


def write_confusions(folder: Path, confusions: Mapping[str, Mapping[str, Confusion]]) -> None:
    """Write `confusions`, by network and key, to `folder`, atomically."""
    arrays: dict[str, np.ndarray] = {}
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("key", "network", *ClassRow._fields))
    for network, judged in confusions.items():
        for key, confusion in judged.items():
            arrays[PREFIXES[network] + key] = confusion.counts
            arrays[NAMES + key.rpartition("/")[0]] = np.array(confusion.names, dtype=np.str_)
            table.writerows((key, network, *row) for row in confusion.rows())
    with replacing(folder / COUNTS) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    write_text(folder / CLASSES, text.getvalue())
