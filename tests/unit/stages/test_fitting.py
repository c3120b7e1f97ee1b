"""Ways, shots and queries that a config leaves open, by the rooms that its splits leave."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sseg_nase.config.compose import defaults, load
from sseg_nase.config.schema import Config, DatasetConfig
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.stages import fitting
from sseg_nase.stages.fitting import (
    Room,
    episodes_that_fit,
    evaluated_datasets,
    fitted,
    room_of,
    unused_images,
    what_fits,
)

USUAL = defaults().evaluation
OPEN = dataclasses.replace(USUAL, ways=None, shots=None, queries=None)


def store(counts: Sequence[int]) -> ImageStore:
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(labels), 1, 1, 3), np.uint8)
    return ImageStore.from_arrays(pixels, labels, [f"c{label}" for label in range(len(counts))])


@cache
def config_of(*overrides: str, dataset: str = "folder") -> Config:
    root = ["dataset.root=."] if dataset == "folder" else []
    return load(["debug=tiny", f"dataset={dataset}", *root, *overrides])


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[int]]:
    """Images per class of every split of the data set, to be filled by the test."""
    counts: dict[str, list[int]] = {}

    def images_of(config: Config, dataset: DatasetConfig, split: str) -> ImageStore:
        return store(counts[split if dataset is config.dataset else f"{dataset.name}/{split}"])

    def available_splits(dataset: DatasetConfig, **places: Path) -> tuple[str, ...]:
        return tuple(counts)

    monkeypatch.setattr(fitting, "images_of", images_of)
    monkeypatch.setattr(fitting, "available_splits", available_splits)
    monkeypatch.setattr(fitting, "how_dealt", lambda dataset, **places: "dealt")
    return counts


def values(section: Any) -> tuple[Any, ...]:
    return section.ways, section.shots, getattr(section, "queries", None)


# -- rooms -----------------------------------------------------------------------------------------


def test_the_smallest_class_limits_a_split() -> None:
    room = room_of(store([9, 3, 5]), "val", "own")
    assert room[:2] == (3, 3)
    assert room.where == "val of dataset=own has 3 classes, 'c1' there has 3 images"
    assert room_of(store([1]), "val", "own").where.endswith("1 class, 'c0' there has 1 image")


@pytest.mark.parametrize(
    ("asked", "rooms", "expected"),
    [
        # Of several splits the one with the fewest classes and that with the smallest class count.
        ({}, [(4, 40), (3, 60), (9, 50)], (3, [1, 5], 15)),
        ({}, [(5, 40), (6, 12), (9, 60)], (5, [1, 5], 7)),
        # Five shots stay where they leave as many queries, or those that are asked for.
        ({}, [(5, 9)], (5, [1], 8)),
        ({"queries": 4}, [(5, 9)], (5, [1, 5], 4)),
        ({"queries": 5}, [(5, 9)], (5, [1], 5)),
        ({"shots": [1, 5]}, [(5, 7)], (5, [1, 5], 2)),
        # One class may get the queries of all.
        ({"query_balance": "dirichlet"}, [(3, 16)], (3, [1, 5], 3)),
        ({"query_balance": "dirichlet", "ways": 2}, [(3, 16)], (2, [1, 5], 5)),
        # Which needs two of a class to tell where they go.
        ({"method": "sinkhorn"}, [(2, 3)], (2, [1], 2)),
    ],
)
def test_what_fits_all_rooms(
    asked: dict[str, Any], rooms: list[tuple[int, int]], expected: tuple[Any, ...]
) -> None:
    fit = episodes_that_fit(
        dataclasses.replace(OPEN, **asked), USUAL, [Room(*room, "there") for room in rooms]
    )
    assert values(fit) == expected


@pytest.mark.parametrize(
    ("asked", "room", "said"),
    [
        ({}, (1, 9), "two classes at least"),
        ({}, (2, 1), "needs 2 of every class"),
        ({"method": "sinkhorn"}, (2, 2), "needs 3 of every class"),
        ({"queries": 4}, (2, 4), "needs 5 of every class"),
        ({"shots": [1, 4]}, (2, 4), "needs 5 of every class"),
        ({"method": "sinkhorn", "shots": [3]}, (2, 4), "needs 5 of every class"),
        ({"query_balance": "dirichlet", "queries": 2}, (3, 6), "needs 7 of every class"),
        ({"query_balance": "dirichlet", "shots": [4]}, (3, 6), "needs 7 of every class"),
    ],
)
def test_what_fits_no_room_is_refused(
    asked: dict[str, Any], room: tuple[int, int], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        episodes_that_fit(dataclasses.replace(OPEN, **asked), USUAL, [Room(*room, "there")])


def test_ways_that_are_given_are_not_compared_with_the_classes_here() -> None:
    asked = dataclasses.replace(OPEN, ways=3)
    assert episodes_that_fit(asked, USUAL, [Room(1, 9, "there")]).ways == 3


def test_what_fits_is_said_only_where_something_was_given() -> None:
    room = [Room(3, 8, "there")]
    assert what_fits(OPEN, room, USUAL) == ""
    said = what_fits(dataclasses.replace(OPEN, shots=[9]), room, USUAL)
    assert said == "evaluation.ways=3 'evaluation.shots=[1]' evaluation.queries=7"
    assert what_fits(USUAL, [Room(3, 1, "there")]) == ""


# -- a whole config --------------------------------------------------------------------------------


def test_the_split_that_is_evaluated_is_what_is_fitted_to(splits: dict[str, list[int]]) -> None:
    splits |= {"train": [50] * 9, "val": [50] * 8, "test": [4] * 3}
    config, notes = fitted(config_of("evaluation.split=test"))
    assert values(config.evaluation) == (3, [1], 3)
    assert any("test of dataset=folder has 3 classes" in note for note in notes)
    assert notes[0].startswith("dealt (dataset.split_fractions=[TRAIN,VAL,TEST] sets it)")
    config, notes = fitted(config_of())
    assert values(config.evaluation) == (5, [1, 5], USUAL.queries)
    assert not any("evaluation." in note for note in notes)  # all of it is as usual


def test_only_what_was_open_and_is_not_as_usual_is_said(splits: dict[str, list[int]]) -> None:
    splits |= {"train": [50] * 9, "val": [12] * 8}
    _, notes = fitted(config_of("evaluation.ways=4"))
    [said] = [note for note in notes if "evaluation." in note]
    assert said.startswith("evaluation.queries=7: val of")


def test_what_is_given_stays_and_must_fit_the_rest_of_the_config(
    splits: dict[str, list[int]],
) -> None:
    splits |= {"train": [50] * 9, "val": [50] * 8}
    config, _ = fitted(config_of("evaluation.queries=3", "evaluation.shots=[2]"))
    assert values(config.evaluation) == (5, [2], 3)
    with pytest.raises(UserError, match=r"evaluation\.top_k"):
        fitted(config_of("evaluation.top_k=[7]"))


@pytest.mark.parametrize(
    ("train", "val", "overrides", "expected"),
    [
        ([50] * 9, [50] * 9, [], (5, 5, 15)),
        ([50] * 4, [50] * 9, [], (4, 5, 15)),
        ([50] * 4, [50] * 9, ["finetune.ways=3"], (3, 5, 15)),
        ([6] * 9, [50] * 9, [], (5, 3, 3)),  # as many shots as queries
        ([50] * 9, [9] * 9, ["evaluation.queries=7"], (5, 2, 15)),  # by which it is chosen
        ([2] * 9, [50] * 9, [], (5, 1, 1)),
        ([50] * 9, [50] * 9, ["finetune.shots=2", "finetune.queries=3"], (5, 2, 3)),
    ],
)
def test_the_episodes_of_training_fit_the_base_classes(
    splits: dict[str, list[int]],
    train: list[int],
    val: list[int],
    overrides: list[str],
    expected: tuple[int, ...],
) -> None:
    splits |= {"train": train, "val": val}
    config, notes = fitted(config_of("finetune=prototypical", *overrides))
    assert values(config.finetune) == expected
    said = [note for note in notes if note.startswith("finetune.")]
    usual = values(defaults().finetune)
    assert (
        bool(said) == (not overrides and expected != usual) or "evaluation.queries=7" in overrides
    )


def test_fine_tuning_is_chosen_by_val_whatever_is_evaluated(splits: dict[str, list[int]]) -> None:
    splits |= {"train": [50] * 9, "val": [4] * 3, "test": [50] * 9}
    config, _ = fitted(config_of("evaluation.split=test"))
    assert values(config.evaluation)[:2] == (5, [1, 5])
    config, _ = fitted(config_of("evaluation.split=test", "finetune=prototypical"))
    assert values(config.evaluation) == (3, [1], 3)
    assert config.finetune.shots == 1
    splits |= {"val": [50] * 9, "test": [4] * 3}
    config, _ = fitted(config_of("evaluation.split=test", "finetune=prototypical"))
    assert values(config.evaluation) == (3, [1], 3)


def test_too_few_images_to_train_on_are_refused(splits: dict[str, list[int]]) -> None:
    splits |= {"train": [3] * 9, "val": [50] * 9}
    with pytest.raises(UserError, match=r"train of dataset=folder .* needs 4 of every class"):
        fitted(config_of("finetune=prototypical", "finetune.shots=3"))


def test_a_maml_head_has_as_many_ways_in_training_as_in_tests(
    splits: dict[str, list[int]],
) -> None:
    maml = ["finetune=maml", "evaluation.method=maml", "evaluation.normalize=none"]
    splits |= {"train": [4] * 3, "val": [50] * 9}
    config, _ = fitted(config_of(*maml))
    assert config.finetune.ways == config.evaluation.ways == 3
    assert config.evaluation.shots == [1, 5]  # the small classes of train are not evaluated
    splits["train"] = [50] * 9
    for given in ("finetune.ways=4", "evaluation.ways=4"):
        config, _ = fitted(config_of(*maml, given))
        assert config.finetune.ways == config.evaluation.ways == 4


def test_a_classifier_has_no_queries(splits: dict[str, list[int]]) -> None:
    splits |= {"train": [50] * 9, "val": [50] * 9}
    config, _ = fitted(config_of("finetune=linear"))
    assert values(config.finetune) == (5, 5, None)
    given = ["evaluation.ways=5", "evaluation.shots=[1]", "evaluation.queries=5"]
    config = config_of("finetune=linear", "finetune.ways=5", "finetune.shots=1", *given)
    splits.clear()
    assert values(fitted(config)[0].finetune) == (5, 1, None)  # nothing is open


def test_several_data_sets_are_evaluated_in_their_order(splits: dict[str, list[int]]) -> None:
    config = config_of("evaluation.datasets=[omniglot,folder]")
    assert [dataset.name for dataset in evaluated_datasets(config)] == ["omniglot", "folder"]
    assert evaluated_datasets(config)[1] is config.dataset
    splits |= {"train": [50] * 9, "val": [50] * 9, "omniglot/val": [7] * 4}
    fit, notes = fitted(config)
    assert values(fit.evaluation) == (4, [1], 6)
    [said] = [note for note in notes if "val of dataset=omniglot has 4 classes" in note]
    assert "val of dataset=folder has 9 classes" in said


@pytest.mark.parametrize(
    ("counts", "said"),
    [({"train": [5]}, "there is one class"), ({"train": [5], "val": [5] * 3}, "")],
)
def test_one_class_alone_is_refused(
    splits: dict[str, list[int]], counts: dict[str, list[int]], said: str
) -> None:
    splits |= counts
    if said:
        with pytest.raises(UserError, match=said):
            fitted(config_of())
    else:
        assert fitted(config_of())[0].evaluation.ways == 3
    splits |= {"omniglot/val": [50] * 9}
    assert fitted(config_of("evaluation.datasets=[omniglot]"))[0].evaluation.ways == 5


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (yaml.safe_dump({"evaluation": {"ways": 2, "shots": [3], "queries": 4}}), (2, [3], 4)),
        (yaml.safe_dump({"evaluation": {"ways": 2}}), (2, [1, 5], USUAL.queries)),
        (yaml.safe_dump({"evaluation": 3}), (5, [1, 5], USUAL.queries)),
        ("[", (5, [1, 5], USUAL.queries)),
        (None, (5, [1, 5], USUAL.queries)),
    ],
)
def test_a_resumed_run_goes_on_with_what_it_began_with(
    splits: dict[str, list[int]], tmp_path: Path, stored: str | None, expected: tuple[Any, ...]
) -> None:
    if stored is not None:
        (tmp_path / "config.yaml").write_text(stored)
    config = dataclasses.replace(config_of(), resume=str(tmp_path))
    config, notes = fitted(config)  # without a look at the images
    assert values(config.evaluation) == expected
    assert not any("evaluation." in note for note in notes)


def test_a_resumed_run_may_be_given_other_values(
    splits: dict[str, list[int]], tmp_path: Path
) -> None:
    begun = {"evaluation": {"ways": 2, "shots": [3], "queries": 4}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(begun))
    config = dataclasses.replace(config_of("evaluation.ways=4"), resume=str(tmp_path))
    assert values(fitted(config)[0].evaluation) == (4, [3], 4)


# -- the level NATURAL -----------------------------------------------------------------------------


STILL = ["evolution=none", "sparsity=none"]  # what could put off the end of a level


def levels_of(config: Config, epochs: int, **changed: Any) -> Config:
    curriculum = dataclasses.replace(
        config.curriculum, levels=["BASIC", "TEXTURE", "NATURAL"], progression=True, **changed
    )
    pretrain = dataclasses.replace(config.pretrain, epochs=epochs)
    return dataclasses.replace(config, curriculum=curriculum, pretrain=pretrain)


@pytest.mark.parametrize(
    ("mutations", "epochs", "given", "length"),
    [
        (False, 4, None, 1),  # evenly it would be two epochs a level, and NATURAL never begins
        (False, 6, None, None),  # two epochs a level leave two
        (False, 2, None, None),  # fewer epochs than levels
        (False, 4, 2, 2),  # what is given is never changed
        (True, 4, None, 1),  # perhaps too long: what can be done
        (True, 6, None, 1),  # a mutation may come before the end of each of two levels
        (True, 9, None, None),  # three epochs and one more, twice, leave one
    ],
)
def test_levels_are_short_enough_for_natural_to_begin(
    splits: dict[str, list[int]],
    mutations: bool,
    epochs: int,
    given: int | None,
    length: int | None,
) -> None:
    splits |= {"train": [50] * 9, "val": [50] * 9}
    config = levels_of(config_of(*([] if mutations else STILL)), epochs, max_epochs_per_level=given)
    fit, notes = fitted(config)
    assert fit.curriculum.max_epochs_per_level == length
    said = [note for note in notes if note.startswith("curriculum.max_epochs_per_level=1")]
    assert bool(said) == (length != given)
    # It is said as well where nothing else is open.
    values = {"ways": 5, "shots": [1], "queries": 5}
    closed = dataclasses.replace(
        config,
        evaluation=dataclasses.replace(config.evaluation, **values),
        finetune=dataclasses.replace(config.finetune, ways=5, shots=5, queries=15),
    )
    fit, notes = fitted(closed)
    assert fit.curriculum.max_epochs_per_level == length
    assert notes == said


@pytest.mark.parametrize(
    "config",
    [
        levels_of(config_of(dataset="digits"), 4, max_epochs_per_level=None),
        levels_of(
            config_of("ssl=none", "evolution=none", "sparsity=none"), 4, max_epochs_per_level=None
        ),
        levels_of(config_of("task=evaluate", "checkpoint=x.pt"), 4, max_epochs_per_level=None),
    ],
    ids=["benchmark", "not-trained", "evaluated"],
)
def test_levels_stay_as_they_are_where_own_images_are_not_pretrained_on(
    splits: dict[str, list[int]], config: Config
) -> None:
    splits |= {"train": [50] * 9, "val": [50] * 9}
    assert fitted(config)[0].curriculum.max_epochs_per_level is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (levels_of(config_of(), 0, max_epochs_per_level=1), "pretrain.epochs=0 trains nothing"),
        (
            levels_of(config_of(*STILL), 2, max_epochs_per_level=1),
            "begins after epoch 2, if no level ends sooner, and training ends after epoch 2. "
            "Set pretrain.epochs=3 curriculum.max_epochs_per_level=1",
        ),
        (levels_of(config_of(*STILL), 3, max_epochs_per_level=1), None),
        (
            levels_of(config_of(*STILL), 7, max_epochs_per_level=4),
            "begins after epoch 8, if no level ends sooner, and training ends after epoch 7. "
            "Set curriculum.max_epochs_per_level=3",
        ),
        (levels_of(config_of(*STILL), 7, max_epochs_per_level=3), None),
        (levels_of(config_of(*STILL), 7, max_epochs_per_level=None), None),
        *(
            (
                levels_of(config_of(still), 4, max_epochs_per_level=1),
                "begins after epoch 4, if no level ends sooner and a mutation puts off the end of "
                "each, and training ends after epoch 4. "
                "Set pretrain.epochs=5 curriculum.max_epochs_per_level=1",
            )
            for still in STILL
        ),
        (levels_of(config_of(), 5, max_epochs_per_level=1), None),
        (
            levels_of(config_of(), 7, max_epochs_per_level=3),
            "Set curriculum.max_epochs_per_level=2",
        ),
        (levels_of(config_of(), 7, max_epochs_per_level=2), None),
        (
            levels_of(config_of("finetune=prototypical"), 0, max_epochs_per_level=1),
            None,  # they are fine-tuned on
        ),
        # Of a benchmark only where the config means to train on them.
        (levels_of(config_of(dataset="digits"), 0, max_epochs_per_level=1), None),
        (levels_of(config_of(dataset="digits"), 2, max_epochs_per_level=1), "begins after epoch 4"),
    ],
)
def test_images_that_are_not_trained_on_are_counted(
    splits: dict[str, list[int]], config: Config, said: str | None
) -> None:
    splits |= {"train": [4, 3], "val": [50] * 9}
    found = unused_images(config)
    if said is None:
        assert found == []
    else:
        [one] = found
        verb = "are not" if "trains nothing" in said else "are perhaps not"
        assert one.startswith(f"the 7 images of train {verb} trained on: ")
        assert said in one
    del splits["train"]
    assert unused_images(config) == []


def test_levels_that_are_mixed_are_all_there_at_once(splits: dict[str, list[int]]) -> None:
    splits |= {"train": [4, 3]}
    mixed = levels_of(config_of(), 2, max_epochs_per_level=4)
    mixed = dataclasses.replace(
        mixed, curriculum=dataclasses.replace(mixed.curriculum, progression=False)
    )
    assert unused_images(mixed) == []
