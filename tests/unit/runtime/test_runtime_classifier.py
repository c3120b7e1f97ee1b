"""Classes learnt from a few images, without torch: the rule, the classes, the reading of images."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sseg_nase
from sseg_nase.data.opening import Reading
from sseg_nase.data.pixels import drawn_with_facts, load_image
from sseg_nase.errors import UserError
from sseg_nase.fewshot import classifiers
from sseg_nase.runtime import UNKNOWN, FewShotClassifier, Metadata, OnnxEmbedder, rule

SIZE = 4
PLAIN = {"background": [255, 255, 255], "value_range": None, "drawing": False, "invert": False}
METADATA = Metadata(
    image_size=SIZE,
    channels=3,
    features=SIZE * SIZE * 3,
    input="uint8",
    reading=PLAIN,
    normalize="cl2n",
    base_mean=[0.5] * (SIZE * SIZE * 3),
    metric="cosine",
    temperature=0.1,
    weights="a network",
    about={},
)


class Pixels:
    """A network whose features are the pixels."""

    def __init__(self, metadata: Metadata = METADATA) -> None:
        self.metadata = metadata

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return (pixels.reshape(len(pixels), -1) / 255).astype(np.float32)


def images(colour: tuple[int, int, int], count: int = 3) -> np.ndarray:
    rng = np.random.default_rng([*colour, count])
    noise = rng.integers(0, 30, (count, SIZE, SIZE, 3))
    return (noise + np.array(colour)).clip(0, 255).astype(np.uint8)


RED, BLUE = (220, 10, 10), (10, 10, 220)


def taught(metadata: Metadata = METADATA) -> FewShotClassifier:
    classifier = FewShotClassifier(Pixels(metadata))
    classifier.add("red", images(RED))
    classifier.add("blue", images(BLUE))
    return classifier


# -- the rule --------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", sorted(classifiers.NORMALIZATIONS))
@pytest.mark.parametrize("metric", sorted(classifiers.METRICS))
def test_the_rule_is_that_of_the_evaluation(normalize: str, metric: str) -> None:
    rng = np.random.default_rng(0)
    support, query, mean = (rng.normal(size=size) for size in ((3, 5, 8), (7, 8), (8,)))
    query[0] = mean  # zero behind the centring
    s, q = (rule.NORMALIZATIONS[normalize](each, mean) for each in (support.reshape(-1, 8), query))
    ours = rule.METRICS[metric](s.reshape(3, 5, 8).mean(axis=1), q)
    ts, tq, tm = (torch.from_numpy(each) for each in (support, query, mean))
    normal = classifiers.NORMALIZATIONS[normalize]
    theirs = classifiers.prototype_scores(normal(ts, tm)[None], normal(tq, tm)[None], metric)[0]
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)


def test_both_know_the_same_rules() -> None:
    assert set(rule.NORMALIZATIONS) == set(classifiers.NORMALIZATIONS)
    assert set(rule.METRICS) == set(classifiers.METRICS)


def test_probabilities_are_a_softmax_at_the_temperature() -> None:
    classifier = taught()
    prediction = classifier.predict(images(RED, 2))
    scores = torch.from_numpy(classifier.scores(images(RED, 2)))
    expected = (scores / METADATA.temperature).softmax(dim=1).numpy()
    np.testing.assert_allclose(prediction.probabilities, expected, atol=1e-12)
    assert prediction.classes == ("red", "blue")
    assert prediction.names == ["red", "red"]


# -- the classes -----------------------------------------------------------------------------------


def test_a_class_learnt_in_parts_is_the_class_learnt_at_once(tmp_path: Path) -> None:
    apart, together = FewShotClassifier(Pixels()), taught()
    apart.add("red", images(RED)[:1])
    apart.add("blue", images(BLUE))
    apart.save(tmp_path / "classes.json")
    apart = FewShotClassifier(Pixels())
    apart.load(tmp_path / "classes.json")
    apart.add("red", images(RED)[1:])
    assert apart.counts() == together.counts() == {"red": 3, "blue": 3}
    query = np.concatenate([images(RED, 5), images(BLUE, 5)])
    np.testing.assert_allclose(apart.scores(query), together.scores(query), atol=1e-12)


def test_a_class_is_forgotten() -> None:
    classifier = taught()
    classifier.add("green", images((10, 220, 10)))
    classifier.remove("red")
    assert classifier.classes == ("blue", "green")
    with pytest.raises(UserError, match="class red: it is not known; known: blue, green"):
        classifier.remove("red")


def test_below_the_threshold_it_is_unknown() -> None:
    classifier = taught()
    query = np.concatenate([images(RED, 1), images((115, 10, 115), 1)])
    probabilities = classifier.predict(query).probabilities.max(axis=1)
    assert probabilities[1] < probabilities[0]
    between = float(probabilities.mean())
    assert classifier.predict(query, threshold=between).names == ["red", UNKNOWN]
    assert classifier.predict(query, threshold=float(probabilities[1])).names[1] != UNKNOWN


def test_mistakes_are_said(tmp_path: Path) -> None:
    classifier = FewShotClassifier(Pixels())
    with pytest.raises(UserError, match="two classes are needed to tell them apart; there is none"):
        classifier.predict(images(RED))
    classifier.add("red", images(RED))
    with pytest.raises(UserError, match="there is red"):
        classifier.predict(images(RED))
    with pytest.raises(UserError, match="class blue: there is no image"):
        classifier.add("blue", [])
    with pytest.raises(UserError, match=r"cannot be called 'unknown'"):
        classifier.add(UNKNOWN, images(RED))
    with pytest.raises(UserError, match=r"gone.png does not exist"):
        classifier.add("blue", [images(BLUE)[0], tmp_path / "gone.png"])
    assert classifier.classes == ("red",)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda saved: saved.update(weights="another"), "learnt with another network"),
        (lambda saved: saved.update(schema=9), "schema 9, this version reads 1"),
        (lambda saved: saved["classes"]["red"]["sum"].pop(), "it is damaged"),
        (lambda saved: saved["classes"]["red"].update(count=0), "it is damaged"),
        (lambda saved: saved.pop("classes"), "no classes can be read"),
    ],
)
def test_classes_that_do_not_fit_are_refused(tmp_path: Path, damage: object, said: str) -> None:
    path = tmp_path / "classes.json"
    taught().save(path)
    saved = json.loads(path.read_text())
    damage(saved)  # type: ignore[operator]
    path.write_text(json.dumps(saved))
    classifier = taught()
    with pytest.raises(UserError, match=said):
        classifier.load(path)
    assert classifier.classes == ("red", "blue")


def test_features_that_are_not_finite_are_refused() -> None:
    class Diverged(Pixels):
        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            return np.full((len(pixels), self.metadata.features), np.nan, np.float32)

    with pytest.raises(UserError, match="not finite"):
        FewShotClassifier(Diverged()).add("red", images(RED))


# -- images ----------------------------------------------------------------------------------------


def test_files_are_read_as_data_sets_read_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, 9, 4), np.uint8)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned
    image.save(tmp_path / "x.png", exif=exif)
    reading = {**PLAIN, "background": [0, 255, 0]}
    found = dataclasses.replace(METADATA, reading=reading).batch([tmp_path / "x.png"])
    expected = load_image(tmp_path / "x.png", SIZE, 3, Reading((0, 255, 0)))
    assert np.array_equal(found[0], expected)
    assert not np.array_equal(METADATA.batch([tmp_path / "x.png"])[0], expected)
    drawn = {**PLAIN, "drawing": True, "invert": True}
    found = dataclasses.replace(METADATA, reading=drawn).batch([tmp_path / "x.png"])
    assert np.array_equal(
        255 - found[0], drawn_with_facts(tmp_path / "x.png", SIZE, 3, Reading())[0]
    )


def test_arrays_of_other_sizes_and_grey_ones_are_made_to_fit() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (6, 8), np.uint8)
    [found] = METADATA.batch([grey])
    assert np.array_equal(found, load_image(grey, SIZE, 3))
    assert METADATA.batch(images(RED)) is not None
    assert METADATA.batch([]).shape == (0, SIZE, SIZE, 3)


# -- files -----------------------------------------------------------------------------------------


def test_metadata_are_read_back(tmp_path: Path) -> None:
    assert Metadata.from_json(METADATA.to_json(), tmp_path) == METADATA


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, "schema 2, this version reads 1"),
        ({"channels": 2}, "2 channels"),
        ({"base_mean": [0.0]}, "a base mean of 1 for 48 features"),
        ({"temperature": 0}, "a temperature of 0"),
        ({"surplus": 0}, "TypeError"),
    ],
)
def test_metadata_of_another_kind_are_refused(change: dict[str, object], said: str) -> None:
    text = json.dumps({**json.loads(METADATA.to_json()), **change})
    with pytest.raises(UserError, match=said):
        Metadata.from_json(text, Path("network.onnx"))


def test_files_that_are_no_exported_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        OnnxEmbedder(tmp_path / "gone.onnx")
    (tmp_path / "x.onnx").write_bytes(b"not a network")
    pytest.importorskip("onnxruntime")
    with pytest.raises(UserError, match="damaged or no ONNX file"):
        OnnxEmbedder(tmp_path / "x.onnx")
    with pytest.raises(UserError, match="not made by sseg-nase task=export"):
        Metadata.from_json(None, tmp_path / "x.onnx")


def test_the_runtime_does_without_torch_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"")
    code = f"""
import sys
names = ("torch", "torchvision", "filelock", "hydra", "omegaconf", "mlflow", "scipy", "yaml",
         "onnxruntime")
for name in names:
    sys.modules[name] = None
import sseg_nase.runtime as runtime
from sseg_nase.errors import UserError
assert not [name for name in sys.modules if name.startswith(("sseg_nase.nets", "sseg_nase.config"))]
try:
    runtime.OnnxEmbedder({str(tmp_path / "x.onnx")!r})
except UserError as error:
    print(error)
"""
    package = Path(sseg_nase.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=package, capture_output=True, text=True, check=True
    )
    assert "pip install onnxruntime" in done.stdout
