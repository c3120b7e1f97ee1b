"""What a run records of its images and files, and what counts as another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase import load_config
from sseg_nase.config.schema import Config, DatasetConfig
from sseg_nase.data.curriculum.render import DRAWING
from sseg_nase.data.store import ImageStore
from sseg_nase.files import write_json
from sseg_nase.nets.families.resnet import ResNet
from sseg_nase.stages import identity as module
from sseg_nase.stages.evaluating import FewShotTask
from sseg_nase.stages.identity import (
    changed_base,
    changed_since,
    data_of,
    differences,
    drawings,
    drawn_otherwise,
    identity,
    in_results,
    overlaps,
    refuse,
    trained_on,
)
from sseg_nase.training import checkpoint

Data = dict[str, Any]


def store(
    seed: int = 0,
    names: Sequence[str] = ("a", "b"),
    labels: Sequence[int] = (0, 0, 1, 1),
    side: int = 4,
    source: str = "here",
) -> ImageStore:
    shape = (len(labels), side, side, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return ImageStore.from_arrays(pixels, np.array(labels), names, source=source, split="train")


def known(**changed: Any) -> Data:
    return identity(store(**changed))


def run_of(images: Mapping[str, Data], **more: Any) -> Data:
    return {"images": dict(images), "roles": {}, "files": {}, **more}


@cache
def config_of(*overrides: str) -> Config:
    return load_config(["debug=tiny", *overrides])


# -- what is another one ---------------------------------------------------------------------------


def test_images_are_known_by_pixels_labels_and_class_names_not_by_their_place() -> None:
    first = known()
    assert known(source="elsewhere")["identity"] == first["identity"]
    assert known(source="elsewhere")["source"] == "elsewhere"
    others: list[Data] = [
        known(seed=1),
        known(labels=(0, 1, 0, 1)),
        known(names=("a", "c")),
        known(names=("b", "a")),
    ]
    assert len({one["identity"] for one in [first, *others]}) == 5
    assert first["count"] == 4
    assert first["classes"] == ["a", "b"]


def test_drawn_images_are_compared_where_both_have_some() -> None:
    now: Data = {"images": {}, "files": {}, "drawn": ["BASIC"], "drawing": 2}
    assert list(differences({"drawn": ["BASIC"], "drawing": 1}, now)) == ["drawn images"]
    assert not differences({"drawn": ["BASIC"], "drawing": 1}, {**now, "drawn": []})
    unknown: list[Data] = [{"drawn": [], "drawing": 1}, {"drawing": 1}, {"drawn": ["BASIC"]}]
    for before in unknown:
        assert not differences(before, now)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ({}, {"names": ("a", "c")}, "classes gone: b; new classes: c"),
        ({"names": ("a", "b", "c")}, {}, "classes gone: c"),
        ({}, {"labels": (0, 0, 1, 1, 1)}, "4 images then, 5 now"),
        ({}, {"names": ("b", "a")}, "the classes have other names or another order"),
        ({}, {"side": 5}, "4 px then, 5 px now"),
        ({}, {"seed": 1}, "the same classes, but other pixels in its 4 images"),
        ({}, {"labels": (0, 1, 0, 1)}, "the same pixels, but other labels"),
        (
            {"names": tuple("abcdefgh")},
            {"names": tuple("bcdefgh"), "source": "there"},
            "classes gone: a; read from here then, from there now",
        ),
    ],
)
def test_the_first_thing_that_differs_is_said(old: Data, new: Data, said: str) -> None:
    before, now = (run_of({"own/train": known(**one)}) for one in (old, new))
    assert differences(before, now) == {"own/train": said}


def test_all_images_that_both_have_are_compared() -> None:
    before = run_of({"own/train": known(), "own/val": known(), "gone/val": known(seed=5)})
    now = run_of(
        {"new/val": known(seed=6), "own/train": known(source="there"), "own/val": known(seed=1)}
    )
    assert list(differences(before, now)) == ["own/val"]
    assert differences({}, now) == {}  # an older version recorded nothing


def test_a_file_is_another_by_its_content_not_by_its_place() -> None:
    def of(**sums: str) -> Data:
        files = {key: {"path": f"{sha}.pt", "sha256": sha} for key, sha in sums.items()}
        return run_of({}, files=files)

    assert differences(of(start="1"), of(start="2")) == {
        "start": "2.pt is another file than 1.pt was"
    }
    assert differences(of(start="1"), of(weights="2")) == {}
    moved = run_of({}, files={"start": {"path": "moved.pt", "sha256": "1"}})
    assert differences(of(start="1"), moved) == {}


def test_a_refusal_names_what_differs_and_since_when() -> None:
    said = str(refuse("runs/a", {"own/train": "gone", "own/val": "new"}, 3))
    assert "others than those of epochs 1–3:\n  own/train: gone\n  own/val: new" in said
    assert "others than those that the run was begun with" in str(refuse("runs/a", {}, 1))


# -- what was trained on ---------------------------------------------------------------------------


def test_weights_have_seen_what_any_stage_and_any_earlier_part_trained_on() -> None:
    train, tuned, val, older, start = (known(seed=seed) for seed in range(5))
    data = run_of(
        {"own/train": train, "own/tuned": tuned, "own/val": val},
        roles={"evaluate": ["own/val"], "pretrain": ["own/train"], "finetune": ["own/tuned"]},
        earlier=[run_of({"own/train": older}, roles={"pretrain": ["own/train"]})],
        trained_before=[{"key": "base/train", **start}],
    )
    assert [(one["key"], one["identity"]) for one in trained_on(data)] == [
        ("own/train", train["identity"]),
        ("own/tuned", tuned["identity"]),
        ("own/train", older["identity"]),
        ("base/train", start["identity"]),
    ]
    # The same images are told once.
    data["roles"]["finetune"] = ["own/train"]
    data["trained_before"] = [{"key": "own/train", **train}]
    assert len(trained_on(data)) == 2
    assert trained_on({}) == []


def evaluated_on(key: str, images: Data) -> Data:
    return run_of({key: images}, roles={"evaluate": [key]})


@pytest.mark.parametrize(
    ("seen", "evaluated", "said"),
    [
        (("own/train", {}), ("own/val", {"seed": 1, "names": ("c", "d")}), []),
        (("own/train", {}), ("own/val", {}), ["the 4 images of own/val were trained on"]),
        # Under other labels and names they are still the same images.
        (
            ("own/train", {}),
            ("own/val", {"names": ("c", "d"), "labels": (1, 1, 0, 0)}),
            ["the 4 images of own/val were trained on: own/train"],
        ),
        (
            ("own/train", {}),
            ("own/val", {"seed": 1, "names": ("b", "c")}),
            ["1 classes of own/val have names of classes that were trained on (own/train): b"],
        ),
        (("other/train", {}), ("own/val", {}), []),
        (("cifar10/train", {}), ("cifar10/val", {"seed": 1}), []),  # a closed set
        (("cifar10/train", {}), ("cifar10/val", {}), ["the 4 images of cifar10/val were trained"]),
        (("own/train", {"names": ("0", "1")}), ("own/val", {"seed": 1, "names": ("0", "1")}), []),
        (
            ("own/train", {"names": ("0", "x")}),
            ("own/val", {"seed": 1, "names": ("0", "1")}),
            ["1 classes of own/val have names of classes that were trained on (own/train): 0"],
        ),
    ],
)
def test_what_is_evaluated_and_was_trained_on_is_said(
    seen: tuple[str, Data], evaluated: tuple[str, Data], said: list[str]
) -> None:
    (key, changed), (evaluated_key, evaluated_changed) = seen, evaluated
    unlike = {"key": "own/more", **known(seed=9, names=("y", "z"))}
    found = list(
        overlaps(
            [unlike, {"key": key, **known(**changed)}],
            evaluated_on(evaluated_key, known(**evaluated_changed)),
        )
    )
    assert [one.startswith(part) for one, part in zip(found, said, strict=True)] == [True] * len(
        said
    )


def test_of_many_common_names_a_few_are_shown() -> None:
    names = tuple("abcdefg")
    seen = [{"key": "own/train", **known(names=names, labels=range(7))}]
    [said] = overlaps(seen, evaluated_on("own/val", known(seed=1, names=names, labels=range(7))))
    assert said.startswith("7 classes")
    assert said.endswith("a, b, c, d, e, …")
    [said] = overlaps(seen, evaluated_on("own/val", known(names=names[:5], labels=range(5))))
    assert said.endswith("a, b, c, d, e")


def test_a_split_that_is_other_than_when_it_was_trained_on_is_said() -> None:
    now = run_of({"own/train": known(), "own/val": known(seed=4)})

    def said(*seen: Data) -> list[str]:
        return list(changed_base([{"key": "own/train", **one} for one in seen], now))

    assert said(known()) == said() == []
    [one] = said(known(seed=1))
    assert one.startswith("own/train is not what the weights were trained on: the same classes")
    assert said(known(side=8)) == []  # images of another size cannot be compared
    assert said(known(seed=1), known()) == []  # one of the runs in a row had these
    [one] = said(known(seed=1), known(names=("a", "x")))
    assert "classes gone: x" in one  # the latest is compared


def test_results_tell_what_was_evaluated_and_what_was_trained_on() -> None:
    train, val = known(), known(seed=1)
    data = run_of(
        {"own/train": train, "own/val": val, "own/unused": known(seed=2)},
        roles={"evaluate": ["own/val"], "pretrain": ["own/train"], "centre": ["own/unused"]},
    )
    told = in_results(data)
    assert told["centred"] == {"own/unused": data["images"]["own/unused"]["count"]}
    assert list(told["evaluated"]) == ["own/val"]
    assert told["evaluated"]["own/val"]["identity"] == val["identity"]
    assert told["evaluated"]["own/val"]["classes"] == 2  # their number: names may be thousands
    [trained] = told["trained"]
    assert (trained["key"], trained["identity"]) == ("own/train", train["identity"])


# -- what a run works with -------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Of every split that is looked at: data set, split and image size; its images are its own."""
    found: list[tuple[str, str, int]] = []

    def images_of(config: Config, dataset: DatasetConfig, split: str) -> ImageStore:
        found.append((dataset.name, split, config.dataset.image_size))
        seed = sum(map(ord, f"{dataset.name}/{split}/{config.dataset.image_size}"))
        return store(seed=seed)

    monkeypatch.setattr(module, "images_of", images_of)
    return found


def task(key: str, base: ImageStore | None = None) -> FewShotTask:
    """On the episodes `key`, without drawing any."""
    made = FewShotTask.__new__(FewShotTask)
    made.episodes, made.store, made.base = [SimpleNamespace(key=key)], store(7), base  # type: ignore[list-item]
    return made


DIGITS = "dataset=digits"


@pytest.mark.parametrize(
    ("overrides", "pretrained", "roles"),
    [
        (["curriculum=synthetic"], True, {}),
        (["curriculum=natural"], True, {"pretrain": ["digits/train"]}),
        (["curriculum=natural"], False, {}),
        (
            ["curriculum=synthetic", "finetune=prototypical"],
            True,
            {"finetune": ["digits/train"], "select": ["digits/val"]},
        ),
        (["task=evaluate", "checkpoint=x.pt", "finetune=prototypical"], False, {}),
    ],
)
def test_which_images_serve_for_what(
    overrides: list[str],
    pretrained: bool,
    roles: Data,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module.checkpoint, "load", lambda path: {})
    config = config_of(DIGITS, *overrides)
    data = data_of(config, [task("digits/test/5w1s")], pretrained=pretrained)
    assert data["roles"] == {"evaluate": ["digits/test"], **roles}
    used = {key for keys in data["roles"].values() for key in keys}
    assert data["images"].keys() == used
    assert len(asked) == len(used) - 1  # a split is looked at once; the task holds its own
    drawn = [level for level in config.curriculum.levels if level != "NATURAL"]
    assert data["drawn"] == (drawn if pretrained else [])
    assert data["files"] == {}
    assert data["trained_before"] == []


def test_the_base_split_that_features_are_centred_by_is_recorded(asked: list[Any]) -> None:
    tasks = [task("digits/val/5w1s", store(8)), task("omniglot/val/5w1s", store(9))]
    config = config_of(DIGITS, "curriculum=synthetic")
    data = data_of(config, tasks, pretrained=False)
    assert data["roles"] == {
        "evaluate": ["digits/val", "omniglot/val"],
        "centre": ["digits/train", "omniglot/train"],
    }
    assert data["images"]["omniglot/train"]["identity"] == known(seed=9)["identity"]
    assert asked == []


def seen_by(path: Path, images: Data, padding: int = 0) -> Path:
    data = run_of({"digits/train": images}, roles={"pretrain": ["digits/train"]})
    checkpoint.save(path, {"data": data, "padding": torch.zeros(padding)})
    return path


def beginning_with(weights: Path) -> ResNet:
    return ResNet("resnet18", in_channels=3, imports=None, weights=str(weights), stem="auto")


def test_what_the_weights_start_from_is_recorded_with_what_they_have_seen(
    tmp_path: Path, asked: list[Any]
) -> None:
    start = seen_by(tmp_path / "start.pt", known(seed=3))
    evaluated = seen_by(tmp_path / "evaluated.pt", known(seed=4))
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")

    def of(config: Config) -> Data:
        places = {
            "checkpoint": str(evaluated) if config.task == "evaluate" else None,
            "finetune": dataclasses.replace(config.finetune, start=str(start)),
            "backbone": beginning_with(weights),
        }
        config = dataclasses.replace(config, **places)
        return data_of(config, [task("digits/val/5w1s")], pretrained=False)

    tuned = of(config_of(DIGITS, "finetune=prototypical"))
    assert [one["identity"] for one in tuned["trained_before"]] == [known(seed=3)["identity"]]
    assert list(tuned["files"]) == ["finetune.start", "backbone.weights"]
    assert tuned["files"]["backbone.weights"]["path"] == str(weights)
    # Without fine-tuning nothing starts from there.
    plain = of(config_of(DIGITS))
    assert plain["trained_before"] == []
    assert list(plain["files"]) == ["backbone.weights"]
    evaluated = of(config_of(DIGITS, "task=evaluate", "checkpoint=x.pt"))
    assert [one["identity"] for one in evaluated["trained_before"]] == [known(seed=4)["identity"]]


def test_weights_that_saw_drawings_of_another_version_are_told_so(
    tmp_path: Path, asked: list[Any]
) -> None:
    drawn = {"drawn": ["BASIC", "OBJECT"], "drawing": DRAWING + 1}
    earlier = {"drawn": ["BASIC"], "drawing": DRAWING}
    before = run_of({}, **drawn, earlier=[earlier, {"drawn": [], "drawing": 9}])
    path = tmp_path / "evaluated.pt"
    checkpoint.save(path, {"data": before})
    config = config_of(DIGITS, "task=evaluate", "checkpoint=x.pt")
    config = dataclasses.replace(config, checkpoint=str(path))
    data = data_of(config, [task("digits/val/5w1s")], pretrained=False)
    assert data["drawn_before"] == [drawn, earlier]
    (said,) = drawn_otherwise(data)
    assert f"BASIC, OBJECT that version {DRAWING + 1} of" in said
    assert f"this sseg-nase has version {DRAWING}" in said
    assert drawings({**data, **earlier}) == [earlier, drawn]  # what is then trained has seen all


def test_a_file_is_known_by_all_of_its_content(
    tmp_path: Path, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 4)
    sums = set()
    for content in (b"weights 1", b"weights 2", b"weights 1"):
        path = tmp_path / "weights.pt"
        path.write_bytes(content)
        config = config_of(DIGITS)
        config = dataclasses.replace(config, backbone=beginning_with(path))
        data = data_of(config, [task("digits/val/5w1s")], pretrained=False)
        sums.add(data["files"]["backbone.weights"]["sha256"])
    assert len(sums) == 2


def test_the_images_of_a_run_are_compared_as_they_are_now(
    tmp_path: Path, asked: list[tuple[str, str, int]]
) -> None:
    config = config_of(DIGITS)
    size = config.dataset.image_size
    seen: dict[str, Data] = {}
    assert changed_since(tmp_path, config, seen) == {}  # of an older version
    now = {
        key: known(seed=sum(map(ord, f"{key}/{size}")))
        for key in ("digits/train", "digits/val", "omniglot/val")
    }
    write_json(tmp_path / "data.json", run_of(now))
    assert changed_since(tmp_path, config, seen) == {}
    assert asked == [("digits", "train", size), ("digits", "val", size), ("omniglot", "val", size)]
    write_json(tmp_path / "data.json", run_of({**now, "digits/val": known(seed=1)}))
    assert list(changed_since(tmp_path, config, seen)) == ["digits/val"]
    assert len(asked) == 3  # what was looked at is known
    larger = dataclasses.replace(
        config, dataset=dataclasses.replace(config.dataset, image_size=size + 2)
    )
    assert list(changed_since(tmp_path, larger, seen)) == list(now)
    assert len(asked) == 6  # another size is another look
