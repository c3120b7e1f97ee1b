from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.curriculum.scenes import scenes
from sseg_nase.data.curriculum.shapes import SHAPES
from sseg_nase.data.grey import of_channels
from sseg_nase.errors import UserError
from sseg_nase.files import OWN
from sseg_nase.run import run
from sseg_nase.stages.curriculum_images import TABLE, check_export, export_curriculum

TINY = ["debug=tiny", "hardware=cpu", "hardware.precision=32-true", "tracking=jsonl"]
FEW = [f"curriculum.images.{n}=6" for n in ("BASIC", "TEXTURE", "OBJECT", "ADVERSARIAL")]


def config(*overrides: str) -> Config:
    return load([*TINY, *FEW, "task=curriculum", *overrides])


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(newline="") as lines:
        return list(csv.DictReader(lines))


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_every_image_is_the_one_that_is_trained_on(tmp_path: Path, channels: int) -> None:
    folder = tmp_path / "new" / "images"
    given = config("seed=5", f"dataset.channels={channels}", "curriculum=progressive")
    counts = export_curriculum(given, folder)
    rows = rows_of(folder)
    natural = stages.images_of(given, given.dataset, "train")
    assert counts == {"BASIC": 6, "TEXTURE": 6, "OBJECT": 6, "ADVERSARIAL": 6, "NATURAL": 901}
    pictures = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    assert {row["file"] for row in rows} == pictures
    for row in rows[:24] + rows[-3:]:
        pixels = np.asarray(Image.open(folder / row["file"]))
        index = torch.tensor([int(row["index"])])
        if row["level"] == "NATURAL":
            expected = natural.batch(index)[0]
            assert (row["label"], row["seed"]) == (
                natural.class_names[natural.labels[int(index)]],
                "",
            )
        else:
            expected = of_channels(render(row["level"], index, seed=5, image_size=16), channels)[0]
            assert (row["label"], row["seed"]) == ("", "5")
        shown = pixels[..., None] if channels == 1 else pixels
        assert np.array_equal(shown, expected.permute(1, 2, 0).numpy())


def test_the_table_tells_the_shapes_and_what_tells_twins_apart(tmp_path: Path) -> None:
    export_curriculum(config(), tmp_path)
    rows = rows_of(tmp_path)
    for row in rows:
        scene = scenes(row["level"], torch.tensor([int(row["index"])]), seed=0)
        kinds = [
            list(SHAPES)[int(kind)]
            for kind, seen in zip(scene.kind[0], scene.visible[0], strict=True)
            if seen
        ]
        assert row["shapes"].split() == kinds
    by_place = {(row["level"], row["index"]): row for row in rows}
    assert all(row["twin"] == "" for row in rows if row["level"] != "ADVERSARIAL")
    for row in (row for row in rows if row["level"] == "ADVERSARIAL"):
        twin = by_place["ADVERSARIAL", row["twin"]]
        assert twin["twin"] == row["index"]
        assert twin["differs_in"] == row["differs_in"] != ""
        if row["differs_in"] in ("kind", "count"):
            assert twin["shapes"] != row["shapes"]
        else:
            assert twin["shapes"] == row["shapes"]


def test_the_same_config_writes_the_same_files_and_replaces_an_earlier_export(
    tmp_path: Path,
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    export_curriculum(config(), first)
    export_curriculum(config("curriculum.images.BASIC=9", "seed=3"), second)
    (second / f".{TABLE}.half.tmp").write_text("of an export that was killed")
    export_curriculum(config(), second)
    assert everything(first) == everything(second)
    assert OWN in everything(first)


@pytest.mark.parametrize("name", ["notes.txt", "BASIC/mine.png", "MINE/000000.png", TABLE])
def test_a_folder_with_content_of_others_is_refused_and_stays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = everything(tmp_path)
    with pytest.raises(UserError, match=f"curriculum.export={tmp_path}: it holds"):
        export_curriculum(config(), tmp_path)
    assert everything(tmp_path) == before


def test_what_was_added_to_an_export_is_not_replaced(tmp_path: Path) -> None:
    export_curriculum(config("curriculum.levels=[BASIC]"), tmp_path)
    (tmp_path / "BASIC" / "holiday.png").write_text("mine")
    with pytest.raises(UserError, match=r"it holds holiday\.png"):
        check_export(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="this is a file"):
        check_export(tmp_path / "file")


def test_the_task_writes_them_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    directory = run(config("curriculum.levels=[BASIC,TEXTURE]", f"curriculum.export={folder}"))
    assert len(rows_of(folder)) == 12
    assert f"{folder}: 12 images of 2 levels as PNG" in (directory / "events.jsonl").read_text()
    (folder / "mine").write_text("")
    with pytest.raises(UserError, match="it holds mine"):
        run(config("curriculum.levels=[BASIC,TEXTURE]", f"curriculum.export={folder}"))
