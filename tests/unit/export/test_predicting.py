"""`task=predict`, and from scores to probabilities."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sseg_nase.config.compose import spelled_out
from sseg_nase.errors import UserError
from sseg_nase.export.calibration import calibration_error, fitted_temperature, log_loss
from sseg_nase.export.predict import images_of, support_of, write
from sseg_nase.runtime import FewShotClassifier, Prediction
from sseg_nase.runtime.rule import softmax


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """support/ with the class folders a and b, and query/ with two images."""
    for name in ("support/a/1.png", "support/a/2.png", "support/b/1.png", "query/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4)).save(tmp_path / name)
    Image.new("RGB", (5, 4)).save(tmp_path / "query" / "y,z.png")
    (tmp_path / "query" / "notes.txt").touch()
    return tmp_path


# -- what is read ----------------------------------------------------------------------------------


def test_every_class_folder_is_a_class(folder: Path) -> None:
    found = support_of(str(folder / "support"))
    assert {name: [path.name for path in paths] for name, paths in found.items()} == {
        "a": ["1.png", "2.png"],
        "b": ["1.png"],
    }


def test_files_folders_and_patterns_name_images(folder: Path) -> None:
    query = folder / "query"
    both = [query / "x.png", query / "y,z.png"]
    for given in (
        [str(query)],
        [str(query / "*.png")],
        [str(query / "*")],  # what is no image is not taken
        [str(path) for path in both],
        [str(both[0]), str(query)],  # nothing twice
    ):
        assert images_of(given) == both


def test_images_on_the_command_line_are_split_at_commas_that_are_not_in_a_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "query")
    assert spelled_out(["images=x.png,y,z.png"]) == ['images=["x.png","y,z.png"]']
    assert spelled_out(["images=*.png"]) == ['images=["*.png"]']


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gone", "support=.*gone: there is no such folder"),
        ("query/x.png", "it is a file"),
        ("query", "no class folders"),
        ("support/a", "no class folders"),
    ],
)
def test_a_support_without_classes_is_refused(folder: Path, given: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        support_of(str(folder / given))


def test_one_class_and_an_empty_class_are_refused(folder: Path) -> None:
    (folder / "support" / "b" / "1.png").unlink()
    with pytest.raises(UserError, match=r"support/b has no images"):
        support_of(str(folder / "support"))
    (folder / "support" / "b").rmdir()
    with pytest.raises(UserError, match=r"there is one class folder, a; .* two are needed"):
        support_of(str(folder / "support"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gone.png", "there is no such file"),
        ("query/*.jpg", "no image matches"),
        ("query/*.txt", "no image matches"),
        ("support", "no images lie in this folder itself"),
    ],
)
def test_images_that_are_none_are_refused(folder: Path, given: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        images_of([str(folder / given)])


# -- what is written -------------------------------------------------------------------------------


def test_predictions_are_written(folder: Path) -> None:
    class Learnt(FewShotClassifier):
        def __init__(self) -> None:
            self._counts = {"a": 2, "b": 1}

    found = Prediction(["a", "unknown"], np.array([[0.9, 0.1], [0.45, 0.55]]), ("a", "b"))
    images = images_of([str(folder / "query")])
    write(folder / "p.csv", images, found, Learnt())
    [head, *rows] = csv.reader((folder / "p.csv").read_text().splitlines())
    assert head == ["image", "class", "confidence", "a", "b"]
    assert rows[0] == [str(images[0]), "a", "0.900000", "0.900000", "0.100000"]
    assert rows[1][:3] == [str(images[1]), "unknown", "0.550000"]
    write(folder / "p.json", images, found, Learnt())
    told = json.loads((folder / "p.json").read_text())
    assert told["support"] == {"a": 2, "b": 1}
    assert told["predictions"][1] == {
        "image": str(images[1]),
        "class": "unknown",
        "confidence": 0.55,
        "probabilities": {"a": 0.45, "b": 0.55},
    }


# -- probabilities ---------------------------------------------------------------------------------


def drawn(temperature: float, count: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and labels that have softmax(scores / temperature) for probabilities."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(count, 4))
    chance = softmax(scores, temperature).cumsum(axis=1)
    return scores, (rng.random((count, 1)) > chance).sum(axis=1)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 3.0])
def test_the_temperature_is_found_again(temperature: float) -> None:
    scores, labels = drawn(temperature)
    found = fitted_temperature(scores, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    for other in (0.99, 1.01):
        assert log_loss(scores, labels, found) <= log_loss(scores, labels, other * found)
    assert calibration_error(scores, labels, found) < 0.02
    # In other units it is the same but for these.
    assert fitted_temperature(1000 * scores, labels) == pytest.approx(1000 * found, rel=1e-6)


def test_the_calibration_error_is_the_mean_gap() -> None:
    # Half of the answers are given with 0.9, the others with 0.6, and 3 of 4 are right.
    scores = np.log([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4)
    labels = np.array([0, 0, 0, 1] * 2)
    assert calibration_error(scores, labels, 1.0) == pytest.approx(0.15)
    assert log_loss(scores[:1], labels[:1], 1.0) == pytest.approx(-np.log(0.9))


def test_equal_scores_have_a_temperature() -> None:
    assert fitted_temperature(np.zeros((4, 3)), np.zeros(4, np.int64)) > 0
