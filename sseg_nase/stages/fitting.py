"""Ways, shots and queries as the images allow, where the config leaves them open.

What was given is never changed. What is open (null, as for images of the user's own) takes the
usual value or the nearest that fits, and every value that is not the usual one is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sseg_nase.config.commands import argument
from sseg_nase.config.compose import dataset_choice, defaults
from sseg_nase.config.groups.dataset import OwnImages
from sseg_nase.config.groups.evaluation import EPISODES, MethodConfig
from sseg_nase.config.groups.finetune import Episodic, Maml
from sseg_nase.config.options import filled, option_of
from sseg_nase.config.schema import (
    Config,
    DatasetConfig,
    EvaluationConfig,
    FinetuneConfig,
)
from sseg_nase.config.sequence import stages_of, with_stages
from sseg_nase.config.validation import validate
from sseg_nase.data.benchmarks import available_splits, how_dealt
from sseg_nase.data.benchmarks.layouts import NAMELESS
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.rundir.config import read_config
from sseg_nase.rundir.unreadable import UnreadableError
from sseg_nase.stages.setup import images_of

SECTIONS = ("evaluation", "finetune")
OPEN = ("ways", "shots", "queries")


class Room(NamedTuple):
    """What limits the episodes of a split: its number of classes, and its smallest class."""

    classes: int
    images: int
    where: str  # the split and the smallest class, in words


def room_of(store: ImageStore, split: str, dataset: str) -> Room:
    """The room that the images of a split leave. `store` holds them."""
    counts = store.counts()
    smallest = int(counts.argmin())
    name = store.class_names[smallest]
    classes = "1 class" if len(counts) == 1 else f"{len(counts)} classes"
    images = "1 image" if counts[smallest] == 1 else f"{counts[smallest]} images"
    where = f"{split} of dataset={dataset} has {classes}, '{name}' there has {images}"
    return Room(len(counts), int(counts[smallest]), where)


def fitted(config: Config) -> tuple[Config, list[str]]:
    """`config` with values for all that it leaves open, and notes on those that are not the usual.

    The usual values are those of `conf/`. A resumed run takes the values that it began with. Raises
    `UserError` where the images allow no episode at all, or do not fit what was given.
    """
    config, notes = _reaching_natural(config)
    tunings = stages_of(config)
    if len(tunings) < 2:
        config, said = _fitted(config)
        return config, [*said, *notes]
    # The episodes of the evaluation fit every stage.
    fits: list[Config] = []
    for stage in tunings:
        stage, said = _fitted(dataclasses.replace(stage, evaluation=config.evaluation))
        config = dataclasses.replace(config, evaluation=stage.evaluation)
        notes = [*said, *notes]
        fits.append(stage)
    return with_stages(config, fits), list(dict.fromkeys(notes))


def _fitted(config: Config) -> tuple[Config, list[str]]:
    """`fitted` for one stage of fine-tuning, or none."""
    notes: list[str] = []
    if not any(
        getattr(getattr(config, section), key) is None
        for section in SECTIONS
        for key in _keys(getattr(config, section))
    ):
        return config, notes
    usual = defaults()
    if config.resume:
        config = _as_begun(config)
    elif config.task in ("pipeline", "evaluate") and config.evaluation.name == EPISODES:
        config, said = _fitted_to_images(config, usual)
        notes = [*_dealt(config), *said, *notes]
    return _with_usual(config, usual), notes


def _fitted_to_images(config: Config, usual: Config) -> tuple[Config, list[str]]:
    evaluation, tuned = config.evaluation, config.finetune.trains
    _check_two_classes(config)
    evaluated = [
        room_of(images_of(config, dataset, evaluation.split), evaluation.split, dataset.name)
        for dataset in evaluated_datasets(config)
    ]
    chosen_by, base = evaluated, None
    if tuned and config.task == "pipeline":
        chosen_by = [room_of(images_of(config, config.dataset, "val"), "val", config.dataset.name)]
        base = room_of(images_of(config, config.dataset, "train"), "train", config.dataset.name)
    if base is not None and isinstance(config.finetune, Maml):
        # Its head has as many classes as the episodes of the evaluation.
        chosen_by = [*chosen_by, base._replace(images=chosen_by[0].images)]
        evaluation = dataclasses.replace(evaluation, ways=evaluation.ways or config.finetune.ways)
    new = episodes_that_fit(evaluation, usual.evaluation, [*evaluated, *chosen_by])
    notes = _said("evaluation", evaluation, new, usual.evaluation, [*evaluated, *chosen_by])
    config = dataclasses.replace(config, evaluation=new)
    if base is not None:
        tuning = _training_episodes(config.finetune, usual.finetune, new, base, chosen_by[0])
        notes += _said("finetune", config.finetune, tuning, usual.finetune, [base, *chosen_by])
        config = dataclasses.replace(config, finetune=tuning)
    config = _with_usual(config, usual)
    validate(config)
    return config, notes


def _check_two_classes(config: Config) -> None:
    """Raise `UserError` for a single class of one's own, which no episode can be sampled from."""
    dataset = config.dataset
    if not isinstance(dataset, OwnImages) or dataset.split_fractions is not None:
        return
    if dataset.name in config.evaluation.datasets:
        splits = available_splits(dataset, **_places(config))
        names = images_of(config, dataset, "train").class_names if splits == ("train",) else ()
        if names == (NAMELESS,):
            raise UserError(
                f"dataset.root={dataset.root} has images and no class folders, so nothing can be "
                "evaluated on it: make a folder per class, or train on the images and evaluate on "
                "others, with evaluation.datasets=[digits]."
            )
        if len(names) == 1:
            raise UserError(
                f"dataset.root={dataset.root}: there is one class, and few-shot episodes tell "
                "classes apart. Add a folder (or label) for another class."
            )


def episodes_that_fit(
    asked: EvaluationConfig, usual: EvaluationConfig, rooms: Sequence[Room]
) -> EvaluationConfig:
    """`asked` with ways, shots and queries where they are None: the usual ones, or what fits.

    A number of shots stays where it leaves at least as many images of a class for queries. Raises
    `UserError` where a split has less than two classes, or a class less than two images.
    """
    few = min(rooms, key=lambda room: room.classes)
    small = min(rooms, key=lambda room: room.images)
    if asked.ways is None and few.classes < 2:
        raise UserError(
            f"{few.where}: an episode needs two classes at least. Add class folders, or choose "
            "another evaluation.split or dataset.split_fractions."
        )
    ways = asked.ways or min(filled(usual.ways, "evaluation.ways"), few.classes)
    # With unequal queries one class may get those of all.
    each = ways if asked.query_balance == "dirichlet" else 1
    fewest = 2 if option_of(MethodConfig, asked.method).transductive else 1
    needed = each * (asked.queries or fewest)

    def fits(shots: int) -> bool:
        return small.images - shots >= (needed if asked.queries else max(needed, shots))

    shots = asked.shots
    if shots is None:
        if small.images < 1 + needed:
            raise _too_small(small, 1 + needed, what_fits(asked, rooms, usual))
        shots = [n for n in filled(usual.shots, "evaluation.shots") if fits(n)] or [1]
    queries = asked.queries
    if queries is None:
        most = (small.images - max(shots)) // each
        queries = min(filled(usual.queries, "evaluation.queries"), most)
        if queries < fewest:
            raise _too_small(small, max(shots) + each * fewest, what_fits(asked, rooms, usual))
    return dataclasses.replace(asked, ways=ways, shots=shots, queries=queries)


def _too_small(room: Room, needed: int, fits: str = "") -> UserError:
    remedy = f"What fits here: {fits}" if fits else "Add images to it, or take the class out."
    return UserError(
        f"{room.where}, and an episode with these settings needs {needed} of every class. {remedy}"
    )


def _training_episodes(
    asked: FinetuneConfig,
    usual: FinetuneConfig,
    evaluation: EvaluationConfig,
    base: Room,
    chosen_by: Room,
) -> FinetuneConfig:
    """`asked` with what fits the base classes, and the val classes by which it is chosen."""
    ways, shots = asked.ways, asked.shots
    if ways is None:
        if base.classes < 2:
            raise UserError(
                f"{base.where}: finetune={asked.name} needs labels of two classes at least. Give a "
                "folder per class, or choose finetune=none."
            )
        ways = min(filled(usual.ways, "finetune.ways"), base.classes)
        ways = evaluation.ways if isinstance(asked, Maml) else ways
    if shots is None:
        queries = filled(evaluation.queries, "evaluation.queries")
        most = min(base.images // 2, chosen_by.images - queries)
        shots = max(1, min(filled(usual.shots, "finetune.shots"), most))
    fit = dataclasses.replace(asked, ways=ways, shots=shots)
    if isinstance(fit, Episodic) and fit.queries is None:
        assert isinstance(usual, Episodic)
        queries = min(filled(usual.queries, "finetune.queries"), base.images - shots)
        if queries < 1:
            raise _too_small(base, shots + 1)
        fit = dataclasses.replace(fit, queries=queries)
    return fit


def what_fits(
    evaluation: EvaluationConfig, rooms: Sequence[Room], usual: EvaluationConfig | None = None
) -> str:
    """The settings nearest to those of `evaluation` that fit `rooms`, as they are typed.

    `usual` stands for what `evaluation` leaves open. Empty where nothing fits.
    """
    given = {key: getattr(evaluation, key) for key in OPEN}
    wanted = {key: value or getattr(usual, key) for key, value in given.items()}
    if not any(given.values()):
        return ""
    asked = dataclasses.replace(evaluation, ways=None, shots=None, queries=None)
    try:
        fit = episodes_that_fit(asked, dataclasses.replace(evaluation, **wanted), rooms)
    except UserError:
        return ""
    return " ".join(argument(f"evaluation.{key}", getattr(fit, key)) for key in OPEN)


def evaluated_datasets(config: Config) -> list[DatasetConfig]:
    """The data sets of `evaluation.datasets`, in their order."""
    names = config.evaluation.datasets or [config.dataset.name]
    return [
        config.dataset if name == config.dataset.name else dataset_choice(name) for name in names
    ]


def unused_images(config: Config) -> list[str]:
    """Say that the train images are not, or perhaps not, trained on, and what would train on them.

    Of a benchmark only where the config means to train on them.
    """
    why = None if config.finetune.trains else _why_unused(config)
    why = why if isinstance(config.dataset, OwnImages) else None
    perhaps = _never_reached(config) if why is None else None
    said = why or perhaps
    if said is None or "train" not in available_splits(config.dataset, **_places(config)):
        return []
    images = len(images_of(config, config.dataset, "train"))
    verb = "are not" if why else "are perhaps not"
    return [f"the {images:,} images of train {verb} trained on: {said}"]


def _why_unused(config: Config) -> str | None:
    curriculum = config.curriculum
    if not config.ssl.trains or config.pretrain.epochs == 0:
        asked = "ssl=none" if not config.ssl.trains else "pretrain.epochs=0"
        return f"{asked} trains nothing"
    if "NATURAL" in curriculum.levels:
        return None
    return (
        f"curriculum={curriculum.name} draws all of its images. Choose curriculum=progressive or "
        "curriculum=natural to train on them, without their labels"
    )


def _never_reached(config: Config) -> str | None:
    curriculum, epochs = config.curriculum, config.pretrain.epochs
    if not config.ssl.trains or epochs == 0 or config.finetune.start:
        return None
    begins = _natural_begins(config)
    if begins < epochs:
        return None
    before, late = curriculum.levels.index("NATURAL"), _late(config)
    longest = (epochs - 1) // before - late
    remedy = (
        f"curriculum.max_epochs_per_level={longest}"
        if longest > 0
        else f"pretrain.epochs={before * (1 + late) + 1} curriculum.max_epochs_per_level=1"
    )
    unless = "if no level ends sooner" + (
        " and a mutation puts off the end of each" if late else ""
    )
    return (
        f"the level NATURAL begins after epoch {begins}, {unless}, and training "
        f"ends after epoch {epochs}. Set {remedy}, or curriculum=natural"
    )


def _natural_begins(config: Config) -> int:
    """The epoch before which NATURAL begins at the latest; 0 where it is there at once."""
    curriculum = config.curriculum
    if "NATURAL" not in curriculum.levels or not curriculum.progression:
        return 0
    before = curriculum.levels.index("NATURAL")
    evenly = -(-config.pretrain.epochs // len(curriculum.levels))
    return before * ((curriculum.max_epochs_per_level or evenly) + _late(config))


def _late(config: Config) -> int:
    """By how many epochs the end of a level may be put off: a mutation comes before it, once."""
    return int(config.evolution.enabled or config.sparsity.enabled)


def _reaching_natural(config: Config) -> tuple[Config, list[str]]:
    """With levels short enough for NATURAL to begin, where their length is open and it is needed.

    For the user's own images only: elsewhere the epochs are divided as they always were.
    """
    curriculum, epochs = config.curriculum, config.pretrain.epochs
    trained = config.task == "pipeline" and config.ssl.trains
    if not isinstance(config.dataset, OwnImages) or not trained:
        return config, []
    if curriculum.max_epochs_per_level is not None:
        return config, []
    if _natural_begins(config) < epochs or epochs < len(curriculum.levels):
        return config, []
    before = curriculum.levels.index("NATURAL")
    length = max(1, min(epochs // len(curriculum.levels), (epochs - 1) // before - _late(config)))
    curriculum = dataclasses.replace(curriculum, max_epochs_per_level=length)
    note = (
        f"curriculum.max_epochs_per_level={length}: so that the level NATURAL, your images, begins "
        f"within pretrain.epochs={epochs}"
    )
    return dataclasses.replace(config, curriculum=curriculum), [note]


def _said(section: str, before: Any, after: Any, usual: Any, rooms: Sequence[Room]) -> list[str]:
    """One note on what was open and is now another value than the usual one."""
    changed = [
        f"{section}.{key}={_short(getattr(after, key))}"
        for key in _keys(before)
        if getattr(before, key) is None and getattr(after, key) != getattr(usual, key)
    ]
    if not changed:
        return []
    usually = ", ".join(_short(getattr(usual, key)) for key in OPEN)
    where = "; ".join(dict.fromkeys(room.where for room in rooms))
    return [f"{' '.join(changed)}: {where} (ways, shots, queries are {usually} where these fit)"]


def _short(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)


def _dealt(config: Config) -> list[str]:
    said = how_dealt(config.dataset, **_places(config))
    return [] if said is None else [f"{said} (dataset.split_fractions=[TRAIN,VAL,TEST] sets it)"]


def _places(config: Config) -> dict[str, Path]:
    paths = config.paths
    return {
        "data_dir": Path(paths.data_dir).expanduser(),
        "cache_dir": Path(paths.cache_dir).expanduser(),
    }


def _as_begun(config: Config) -> Config:
    """With the values that the run in `config.resume` began with, where `config` has none."""
    folder = Path(filled(config.resume, "resume"))
    try:
        stored = read_config(folder.expanduser())
    except UnreadableError:
        return config  # whoever opens the run's folder says what is wrong with it

    def begun_with(section: str) -> Mapping[str, Any]:
        values = stored.get(section)
        if section == "finetune" and isinstance(values, Mapping):  # of this stage, if of several
            own = values.get("own")
            values = own.get(config.finetune.name, values) if isinstance(own, Mapping) else values
        return values if isinstance(values, Mapping) else {}

    return _filled(config, begun_with)


def _with_usual(config: Config, usual: Config) -> Config:
    """With the usual values for what is open and has no effect here."""
    return _filled(config, lambda section: dataclasses.asdict(getattr(usual, section)))


def _keys(section: Any) -> Sequence[str]:
    """What may be open in a section: a classifier has no queries."""
    return [key for key in OPEN if hasattr(section, key)]


def _filled(config: Config, values: Callable[[str], Mapping[str, Any]]) -> Config:
    for section in SECTIONS:
        before, found = getattr(config, section), values(section)
        keys = _keys(before)
        new = {k: found[k] for k in keys if getattr(before, k) is None and k in found}
        config = dataclasses.replace(config, **{section: dataclasses.replace(before, **new)})
    return config
