"""What the types of the schema cannot say: choices, bounds, and keys that must agree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple, cast

from sseg_nase.config.explain import listed
from sseg_nase.config.layout import fields_of, is_section
from sseg_nase.config.schema import LOOKS, SYNTHETIC_LEVELS, Config
from sseg_nase.errors import UserError, did_you_mean


class Switches(NamedTuple):
    """What an ablation has switched on."""

    ssl: bool
    evolution: bool
    sparsity: bool
    progression: bool
    distillation: bool


ABLATIONS: Mapping[str, Switches] = {
    "A1": Switches(False, False, False, False, False),
    "A2": Switches(True, False, False, False, False),
    "A3": Switches(True, True, False, False, False),
    "A4": Switches(True, True, False, True, False),
    "A5": Switches(True, True, False, False, True),
    "A6": Switches(True, True, True, False, False),
    "A7": Switches(True, True, True, True, True),
}


def validate(config: Config) -> None:
    """Raise one `UserError` that lists every value that is not accepted."""
    found = list(_out_of_range(config, "")) or [said for rule in _RULES for said in rule(config)]
    if found:
        raise UserError(listed(found))


def switches(config: Config) -> Switches:
    """Return which parts of the method this config has switched on."""
    trained = config.ssl.name != "none"
    return Switches(
        ssl=trained,
        evolution=config.evolution.enabled,
        sparsity=config.sparsity.enabled,
        progression=config.curriculum.progression,
        distillation=trained and config.ssl.distillation_weight > 0,
    )


def cautions(config: Config) -> list[str]:
    """Return what is accepted but probably not meant, one sentence each."""
    return [*_unlike_its_ablation(config), *_placed_in_vain(config)]


def _unlike_its_ablation(config: Config) -> list[str]:
    if config.ablation is None:
        return []
    meant, given = ABLATIONS[config.ablation]._asdict(), switches(config)._asdict()
    if config.curriculum.levels == ["NATURAL"]:
        given["progression"] = meant["progression"]  # one level has no order
    words = {True: "with", False: "without"}
    return [
        f"ablation={config.ablation} is defined {words[on]} {part}, but this run is {words[not on]}"
        " it: do not compare it under that name."
        for part, on in meant.items()
        if given[part] != on
    ]


def _placed_in_vain(config: Config) -> list[str]:
    placement = config.data.placement
    if placement == "auto" or "NATURAL" in config.curriculum.levels:
        return []
    return [
        f"data.placement={placement}: it has no effect on drawn images (data.memory_gb has), and "
        "without the level NATURAL, which curriculum=progressive has, no real ones are trained on."
    ]


def _out_of_range(section: Any, prefix: str) -> Iterator[str]:
    for name, kind, accepted in fields_of(cast(Any, type(section))):
        key, value = f"{prefix}{name}", getattr(section, name)
        if is_section(kind):
            yield from _out_of_range(value, f"{key}.")
        elif isinstance(value, list):
            for item in value:
                yield from _refused(key, item, accepted)
        elif isinstance(value, dict):
            for name_in_value, item in value.items():
                if name_in_value not in accepted["keys"]:
                    yield _not_one_of(f"{key}.{name_in_value}", None, accepted["keys"])
                yield from _refused(f"{key}.{name_in_value}", item, accepted)
        elif value is not None:
            yield from _refused(key, value, accepted)


def _refused(key: str, value: Any, accepted: Mapping[str, Any]) -> Iterator[str]:
    if "choices" in accepted and value not in accepted["choices"]:
        yield _not_one_of(key, value, accepted["choices"])
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key}={value}: a finite number is needed."
        return
    limits = {
        "at least": ("least", lambda bound: value >= bound),
        "more than": ("above", lambda bound: value > bound),
        "at most": ("most", lambda bound: value <= bound),
    }
    for words, (limit, holds) in limits.items():
        if limit in accepted and not holds(accepted[limit]):
            yield f"{key}={value}: it must be {words} {accepted[limit]}."


def _not_one_of(key: str, value: Any, choices: Sequence[Any]) -> str:
    word = key.rpartition(".")[2] if value is None else str(value)
    shown = key if value is None else f"{key}={value}"
    names = [str(choice) for choice in choices]
    return f"{shown}: choose one of {', '.join(names)}.{did_you_mean(word, names)}"


def _task(config: Config) -> Iterator[str]:
    inputs = {
        "checkpoint": {
            "evaluate": "which network? Add checkpoint=FILE, such as RUN/checkpoints/best.pt."
        },
        "run": {
            "replay": "which run? Add run=RUN_DIR, a folder with config.yaml.",
            "deliver": "what? Add run=RUN_DIR, or sweep=DIR for those of a sweep that need it.",
        },
    }
    for key, questions in inputs.items():
        value = getattr(config, key)
        if config.task in questions and not value and not config.sweep.dir:
            yield f"task={config.task}: {questions[config.task]}"
        if config.task not in questions and value:
            tasks = " or ".join(f"task={task}" for task in questions)
            yield (
                f"{key}={value}: it has no effect with task={config.task}; "
                f"add {tasks} or leave it out."
            )


def _resume(config: Config) -> Iterator[str]:
    if config.resume and config.task != "pipeline":
        yield f"resume={config.resume}: only task=pipeline can be gone on with."
    if config.resume_overrides and not config.resume:
        yield "resume_overrides=true: it has no effect without resume=RUN_DIR."


def _sweep(config: Config) -> Iterator[str]:
    sweep, looking = config.sweep, config.task in LOOKS
    if sweep.dir and not looking and sweep.job is None:
        yield (
            f"sweep={sweep.dir}: it has no effect with task={config.task}; add task=status, "
            "task=report or task=deliver, or -m to go on with that sweep."
        )
    if sweep.dir and config.task == "deliver" and config.run:
        yield f"run={config.run}: not together with sweep={sweep.dir}; leave one of them out."
    if sweep.watch and config.task != "status":
        yield f"sweep.watch=true: it has no effect with task={config.task}; add task=status."


def _names(config: Config) -> Iterator[str]:
    name = config.experiment_name
    if not name or PurePath(name).name != name:
        yield f"experiment_name={name}: it names a folder; use a word without slashes."
    for key, value in dataclasses.asdict(config.paths).items():
        if not value:
            yield f"paths.{key}: a folder is needed, it is empty."


def _dataset(config: Config) -> Iterator[str]:
    dataset = config.dataset
    if dataset.name in ("folder", "csv") and not dataset.root:
        what = "folder with one sub-folder per class" if dataset.name == "folder" else "CSV file"
        yield f"dataset={dataset.name}: which images? Add dataset.root=PATH, a {what}."
    if dataset.name == "digits" and dataset.root:
        yield (
            f"dataset.root={dataset.root}: it has no effect with dataset=digits, which comes with "
            "scikit-learn; choose dataset=folder or dataset=csv."
        )
    fractions = dataset.split_fractions
    if len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-6:
        yield (
            f"dataset.split_fractions={fractions}: three numbers with the sum 1 are needed, "
            "for train, val and test."
        )


def _curriculum(config: Config) -> Iterator[str]:
    curriculum = config.curriculum
    yield from _a_set("curriculum.levels", curriculum.levels)
    for level in curriculum.levels:
        if level in SYNTHETIC_LEVELS and level not in curriculum.images:
            yield f"curriculum.images.{level}: the level is used, so a number is needed."


def _views(config: Config) -> Iterator[str]:
    for name in ("crop_scale", "crop_ratio", "blur_sigma"):
        pair = getattr(config.views, name)
        if len(pair) != 2 or pair[0] > pair[1]:
            yield f"views.{name}={pair}: two numbers are needed, [low, high]."


def _architecture(config: Config) -> Iterator[str]:
    channels, evolution = config.backbone.channels, config.evolution
    if not channels:
        yield "backbone.channels=[]: at least one block is needed, such as [16,32,64]."
    if not evolution.enabled:
        return
    yield from _a_set("evolution.operators", evolution.operators)
    if len(channels) > evolution.max_blocks:
        yield (
            f"evolution.max_blocks={evolution.max_blocks}: backbone.channels={channels} "
            "starts with more blocks."
        )
    if channels and max(channels) > evolution.max_channels:
        yield (
            f"evolution.max_channels={evolution.max_channels}: backbone.channels={channels} "
            "starts with more channels."
        )


def _untrained(config: Config) -> Iterator[str]:
    parts = [part for part in ("evolution", "sparsity") if getattr(config, part).enabled]
    if config.ssl.name == "none" and parts:
        missing = " ".join(f"{part}=none" for part in parts)
        yield f"ssl=none: nothing is trained, so add {missing}, or choose ablation=A1."


def _evaluation(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    yield from _a_set("evaluation.shots", evaluation.shots)
    yield from _a_set("evaluation.datasets", evaluation.datasets)
    for name in evaluation.datasets:
        if name in ("folder", "csv") and name != config.dataset.name:
            yield (
                f"evaluation.datasets={evaluation.datasets}: {name} is only possible together "
                f"with dataset={name} dataset.root=PATH."
            )


def _optimizer(config: Config) -> Iterator[str]:
    optimizer = config.optimizer
    yield from _own_options(
        config.optimizer,
        "optimizer",
        {"adamw": {"betas"}, "adam": {"betas"}, "sgd": {"momentum", "nesterov"}},
    )
    if optimizer.betas is not None and len(optimizer.betas) != 2:
        yield f"optimizer.betas={optimizer.betas}: two numbers are needed, such as [0.9,0.999]."
    if optimizer.nesterov and not optimizer.momentum:
        yield "optimizer.nesterov=true: it needs optimizer.momentum above 0."


def _scheduler(config: Config) -> Iterator[str]:
    yield from _own_options(
        config.scheduler,
        "scheduler",
        {"cosine": {"final_ratio"}, "step": {"step_size", "gamma"}, "constant": set()},
    )


def _tracking(config: Config) -> Iterator[str]:
    tracking = config.tracking
    if tracking.name == "server" and not tracking.uri:
        yield "tracking=server: where is it? Add tracking.uri=http://HOST:PORT."
    if tracking.name == "jsonl" and tracking.uri:
        yield (
            f"tracking.uri={tracking.uri}: it has no effect with tracking=jsonl; choose "
            "tracking=mlflow or tracking=server."
        )
    if config.task == "deliver" and tracking.name == "jsonl":
        yield (
            "tracking=jsonl: nothing can be delivered there; leave it out for the store that the "
            "run has, or choose tracking=mlflow or tracking=server with tracking.uri=ADDRESS."
        )
    if not tracking.experiment:
        yield "tracking.experiment: a name is needed, it is empty."


def _own_options(section: Any, group: str, own: Mapping[str, set[str]]) -> Iterator[str]:
    """Every option that only some choices of a group have is given exactly where it has effect."""
    for option in sorted(set().union(*own.values())):
        value = getattr(section, option)
        if option in own[section.name] and value is None:
            yield f"{group}.{option}=null: {group}={section.name} needs a value."
        if option not in own[section.name] and value is not None:
            having = " or ".join(name for name, options in own.items() if option in options)
            yield (
                f"{group}.{option}={value}: it has no effect with {group}={section.name}; "
                f"choose {group}={having} or leave it out."
            )


def _a_set(key: str, values: Sequence[Any]) -> Iterator[str]:
    if not values or len(set(values)) != len(values):
        yield f"{key}={list(values)}: at least one is needed, and none twice."


_RULES = cast(
    tuple[Callable[[Config], Iterator[str]], ...],
    (
        _task,
        _resume,
        _sweep,
        _names,
        _dataset,
        _curriculum,
        _views,
        _architecture,
        _untrained,
        _evaluation,
        _optimizer,
        _scheduler,
        _tracking,
    ),
)
