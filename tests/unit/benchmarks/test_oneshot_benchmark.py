"""`benchmarks/oneshot.py` at a tiny size: what it derives is looked up, and it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import oneshot
from sseg_nase.spaces.nb201 import NB201

TINY = ["--width=2", "--images=48", "--side=8", "--epochs=1", "--seeds=1", "--out=out"]


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Images of two classes, and a table in which the accuracy falls with the number of skips."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(24):
            pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number}.png")
    cells = map(NB201().to_string, NB201().points())
    rows = [f"{cell},{90 - cell.count('skip')}" for cell in cells]
    (tmp_path / "table.csv").write_text("\n".join(["arch,c10_test200", *rows]), encoding="utf-8")
    return [str(tmp_path / "images"), str(tmp_path / "table.csv"), *TINY]


@pytest.mark.slow
def test_cells_are_looked_up_and_the_command_goes_on(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ["--only", "darts first", "random_sharing", "--set", "samples=2", "max_skips=2"]
    assert oneshot.main([*given, *one]) == 0
    about = "width=2 images=48 side=8 epochs=1 samples=2 max_skips=2"
    told = json.loads(Path("out/oneshot.json").read_text())
    assert [*told] == [f"{n} {about}" for n in ("darts first", "random_sharing")]
    cell = told[f"darts first {about}"]["0"]
    assert cell["skips"] == cell["cell"].count("skip") <= 2
    page = Path("out/oneshot.md").read_text()
    assert f"| darts first {about} | 1 | {90 - cell['skips']:.2f} |" in page
    assert "| skip connections alone | | 84.00 | 15,625 |" in page
    assert "| the most parameters | | 90.00 | 1 |" in page
    monkeypatch.setattr(oneshot, "searched", lambda *_: pytest.fail("it was there already"))
    assert oneshot.main([*given, *one]) == 0


def test_a_folder_without_classes_is_said(given: list[str], capsys: pytest.CaptureFixture) -> None:
    Path("empty").mkdir()
    assert oneshot.main(["empty", *given[1:]]) == 2
    assert "has no folders of images" in capsys.readouterr().out
