from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from sseg_nase.rundir.confusion import Confusion, write_confusions

NAMES = ("ant", "bee", "cat", "dog")
COUNTS = np.array([[8, 1, 0, 1], [0, 0, 0, 0], [2, 1, 1, 0], [0, 0, 0, 5]])


def test_classes_by_hand() -> None:
    confusion = Confusion(COUNTS, NAMES)
    assert [tuple(row) for row in confusion.rows()] == [
        ("ant", 10, 8, 80.0, "bee"),
        ("cat", 4, 1, 25.0, "ant"),
        ("dog", 5, 5, 100.0, ""),
    ]
    assert confusion.extremes() == {
        "worst_class": {"name": "cat", "accuracy": 25.0},
        "best_class": {"name": "dog", "accuracy": 100.0},
    }


def test_the_files_say_what_was_counted(tmp_path: Path) -> None:
    last, best = Confusion(COUNTS, NAMES), Confusion(COUNTS.T.copy(), NAMES)
    write_confusions(tmp_path, {"last": {"d/val/2w1s": last}, "best": {"d/val/2w1s": best}})
    with np.load(tmp_path / "confusion.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {"d/val/2w1s", "best:d/val/2w1s", "classes:d/val"}
        assert np.array_equal(arrays["d/val/2w1s"], COUNTS)
        assert np.array_equal(arrays["best:d/val/2w1s"], COUNTS.T)
        assert arrays["classes:d/val"].tolist() == list(NAMES)
    with (tmp_path / "per_class.csv").open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert [(row["network"], row["name"]) for row in rows] == [
        ("last", "ant"), ("last", "cat"), ("last", "dog"),
        ("best", "ant"), ("best", "bee"), ("best", "cat"), ("best", "dog"),
    ]  # fmt: skip
    assert rows[0] == {
        "key": "d/val/2w1s", "network": "last", "name": "ant", "queries": "10", "correct": "8",
        "accuracy": "80.0", "taken_for": "bee",
    }  # fmt: skip
