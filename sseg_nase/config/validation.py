"""What the types of the schema cannot say: choices, bounds, and keys that must agree."""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple, cast

from sseg_nase import counting
from sseg_nase.config.explain import listed, shown
from sseg_nase.config.layout import WRITTEN_AS, fields_of, group_option, is_section
from sseg_nase.config.schema import (
    DATASETS,
    EVOLVABLE,
    FINETUNING,
    HEADED,
    LOOKS,
    METHODS,
    OWN,
    PRETRAINED,
    RESNET12,
    RESNETS,
    RESUMED,
    ROOTED,
    SEARCHED,
    SYNTHETIC_LEVELS,
    TAKEN_HOME,
    BackboneConfig,
    Config,
    DatasetConfig,
    EvolutionConfig,
    ViewsConfig,
)
from sseg_nase.config.sequence import FINETUNE_OPTIONS, in_words, stages_of
from sseg_nase.errors import UserError, did_you_mean

# Beyond it whole numbers have no room in what computes with them, and float32 has infinities.
LARGEST = 10**18
LONGEST_NAME = 200  # in bytes; file systems take 255


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


# Which keys have an effect with which backbone, beside those that are no choice of its.
_BLOCKS = {
    "channels",
    "kernel_size",
    "activation",
    "batch_norm",
    "pooling",
    "blocks_per_stage",
    "residual",
    "embedding",
}
BACKBONE_OPTIONS: Mapping[str, set[str]] = {
    **dict.fromkeys(EVOLVABLE, _BLOCKS),
    **{name: {"channels"} for name in RESNET12},
    **{name: {"stem"} for name in RESNETS},
    "vit_small": {"patch_size"},
    SEARCHED: {"space", "point"},
}

# The evaluation.method that judges as finetune=NAME trains, where that is not prototype.
OWN_METHODS = {"matching": "matching", "relation": "relation", "r2d2": "ridge", "maml": "maml"}
_HEAD = {"projection_hidden", "projection_dim"}
_PROJECTOR = {*_HEAD, "projection_layers"}
_DISTILS = "teacher_statistics"
_SIMCLR = {*_PROJECTOR, _DISTILS}
SSL_OPTIONS: Mapping[str, set[str]] = {
    **dict.fromkeys(("simclr", "none"), _SIMCLR),
    "byol": _PROJECTOR,
    "barlow_twins": {*_SIMCLR, "redundancy_weight"},
    "prototype_pairs": {_DISTILS, "views", "distance_temperature"},
    "dino": {
        *_HEAD,
        "prototypes",
        "student_temperature",
        "teacher_temperature",
        "teacher_warmup_epochs",
        "centre_momentum",
        "freeze_last_layer_epochs",
        "global_scale",
        "local_views",
        "local_scale",
        "local_size",
    },
}

DATASET_OPTIONS: Mapping[str, set[str]] = {
    **{name: set() for name in DATASETS},
    "omniglot": {"rotations", "invert"},
    "sketch": {"invert"},
}
SPLIT_BY: Mapping[str, tuple[str, ...]] = {
    "omniglot": ("alphabets", "classes", "vinyals"),
    **dict.fromkeys(("folder", "sketch"), ("auto", "folder", "classes")),
}

_RUNGS = {"fidelity", "least", "most", "eta"}
_POOL = {"starts", "pool", "incumbents"}
STRATEGY_OPTIONS: Mapping[str, set[str]] = {
    "random": set(),
    "grid": {"steps"},
    "local": {"starts", "restarts"},
    "evolution": {"population", "sample"},
    "genetic": {"population", "elites", "tournament", "crossover", "mutation"},
    "reinforce": {"learning_rate", "baseline_decay"},
    "bananas": {*_POOL, "encoding", "members"},
    "gp": {*_POOL, "kernel"},
    "nsga2": {"population", "crossover", "mutation"},
    "halving": {*_RUNGS, "candidates"},
    "hyperband": _RUNGS,
    "asha": _RUNGS,
    "pnas": {"beam", "starts", "expansions", "members", "size"},
    "tpe": {"starts"},
    OWN: set(),
}
EVALUATOR_OPTIONS: Mapping[str, set[str]] = {
    "run": set(),
    "tabular": {"table", "id_column", "form", "protocol"},
    "proxy": {"proxies", "batch", "draws"},
    "predicted": {"learnt_from", "predictor"},
    "inherited": set(),
    OWN: set(),
}


def validate(config: Config) -> None:
    """Raise one `UserError` that lists every value that is not accepted."""
    found = list(_out_of_range(config, ""))
    if config.finetune.sequence:
        found += _of_stages(config, lambda stage: _out_of_range(stage.finetune, "finetune."))
    found = found or [said for rule in _RULES for said in rule(config)]
    if found:
        raise UserError(listed(found))


def _of_stages(config: Config, rule: Callable[[Config], Iterator[str]]) -> Iterator[str]:
    """What `rule` says of every stage of fine-tuning, with the keys as they are written there."""
    for stage in stages_of(config):
        begins = in_words(stage, config)
        for said in rule(stage):
            # Only keys: what chooses a method is written `finetune=`.
            yield (
                said
                if said.startswith("finetune.from")
                else said.replace("finetune.", f"{begins}.")
            )


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
    return [
        *_unlike_its_ablation(config),
        *_placed_in_vain(config),
        *_judged_in_vain(config),
        *_judged_otherwise(config),
        *_far_out(config),
    ]


# Far outside of what training takes: ten times and more beyond what is published for any network of
# these kinds. Adam's step is about the learning rate itself, whatever the gradient, and weights
# are about 0.1; SGD has been run at up to 5, with a batch of 4,096.
_SANE_RATES: Mapping[str, tuple[float, float]] = {
    "adam": (1e-7, 0.1),
    "adamw": (1e-7, 0.1),
    "sgd": (1e-6, 50),
}
USUAL_MOMENTUM = 0.9
_SANE_TEMPERATURES = (0.01, 10)  # of cosines; SimCLR and its successors take 0.05 to 1
_SANE_INNER_RATES = (1e-5, 10)  # MAML takes 0.01 to 0.5


def _far_out(config: Config) -> Iterator[str]:
    """Rates and temperatures with which training will hardly work, though they are possible."""
    if config.task != "pipeline":
        return
    given: dict[str, tuple[float | None, tuple[float, float]]] = {}
    optimizer, ssl, finetune = config.optimizer, config.ssl, config.finetune
    if ssl.name != "none" and config.pretrain.epochs and finetune.start is None:
        given["optimizer.lr"] = optimizer.lr, _SANE_RATES[optimizer.name]
        yield from _far_in_sum(config)
        if ssl.name == "simclr":
            given["ssl.temperature"] = ssl.temperature, _SANE_TEMPERATURES
        given["ssl.student_temperature"] = ssl.student_temperature, _SANE_TEMPERATURES
    for stage in stages_of(config):
        begins, tuning = in_words(stage, config), stage.finetune
        rates = _SANE_RATES[tuning.optimizer]
        if tuning.freeze != "encoder":
            given[f"{begins}.lr_encoder"] = tuning.lr_encoder, rates
        given[f"{begins}.lr_head"] = tuning.lr_head, rates
        given[f"{begins}.inner_lr"] = tuning.inner_lr, _SANE_INNER_RATES
    for key, (value, (low, high)) in given.items():
        if value is not None and not low <= value <= high:
            far = "low" if value < low else "high"
            result = "it will hardly learn anything" if value < low else "it will probably diverge"
            if "temperature" in key:
                result = "the loss will hardly tell images apart, or only the nearest ones"
            yield (
                f"{key}={value:g} is very {far}: {low:g} to {high:g} is the widest that is usual; "
                f"{result}."
            )


def _far_in_sum(config: Config) -> Iterator[str]:
    """Steps of SGD that are far out only because momentum adds them up, to lr / (1 - momentum)."""
    rate, momentum = config.optimizer.lr, config.optimizer.momentum
    if not momentum or rate > _SANE_RATES["sgd"][1]:
        return
    total, most = rate / (1 - momentum), _SANE_RATES["sgd"][1] / (1 - USUAL_MOMENTUM)
    if total > most:
        yield (
            f"optimizer.lr={rate:g} optimizer.momentum={momentum:g}: steps add up to "
            f"lr / (1 - momentum) = {total:g}, which is very high: {most:g} is the highest that is "
            "usual; it will probably diverge."
        )


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


def _judged_otherwise(config: Config) -> list[str]:
    trained, method = config.finetune.name, config.evaluation.method
    own = OWN_METHODS.get(trained, method)
    if config.task != "pipeline" or method == own:
        return []
    return [
        f"evaluation.method={method}: finetune={trained} trains for, and is chosen by, "
        f"evaluation.method={own} (with evaluation.normalize=none)."
    ]


def _placed_in_vain(config: Config) -> list[str]:
    placement = config.data.placement
    if placement == "auto" or "NATURAL" in config.curriculum.levels:
        return []
    return [
        f"data.placement={placement}: it has no effect on drawn images (data.memory_gb has), and "
        "without the level NATURAL, which curriculum=progressive has, no real ones are trained on."
    ]


def _judged_in_vain(config: Config) -> list[str]:
    """Options of the evaluation that were changed from `conf/` and have no effect in this run."""
    evaluation = config.evaluation
    usual = group_option("evaluation", "fewshot")
    effective = {"metric": evaluation.method == "prototype"}
    effective |= {name: evaluation.method == name for name in METHODS if name in usual}
    effective["dirichlet_alpha"] = evaluation.query_balance == "dirichlet"
    needed = {"metric": "method=prototype", "dirichlet_alpha": "query_balance=dirichlet"}
    given = dataclasses.asdict(evaluation)
    return [
        f"evaluation.{name}: it was changed but has no effect without "
        f"evaluation.{needed.get(name, f'method={name}')}."
        for name, used in effective.items()
        if not used and given[name] != usual[name]
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
                if name_in_value not in accepted.get("keys", [name_in_value]):
                    yield _not_one_of(f"{key}.{name_in_value}", None, accepted["keys"])
                yield from _refused(f"{key}.{name_in_value}", item, accepted)
        elif value is not None:
            yield from _refused(key, value, accepted)


def _refused(key: str, value: Any, accepted: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(value, str) and not value.strip() and "choices" not in accepted:
        needed = accepted.get("path") or accepted.get("text") or "a text"
        yield f"{WRITTEN_AS.get(key, key)}= is empty: {needed} is needed."
        return
    if "choices" in accepted and value not in accepted["choices"]:
        yield _not_one_of(key, value, accepted["choices"])
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key}={value}: a finite number is needed."
        return
    if isinstance(value, (int, float)) and abs(value) > LARGEST:
        yield f"{key}={shown(value)}: a number beyond {LARGEST:.0e} is no number for it."
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
    given = key if value is None else f"{key}={value}"
    names = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices]
    return f"{given}: choose one of {', '.join(names)}.{did_you_mean(word, names)}"


def _task(config: Config) -> Iterator[str]:
    inputs = {
        "checkpoint": {
            "evaluate": "which network? Add checkpoint=FILE, such as RUN/checkpoints/best.pt.",
            "export": "which network? Add checkpoint=RUN, a run's folder, or one of its files.",
            "predict": "which network? Add checkpoint=RUN, the folder of a run, or an exported "
            "FILE.onnx.",
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
            several = f" A report is of runs={value}." if config.task == "report" else ""
            yield (
                f"{key}={value}: it has no effect with task={config.task}; "
                f"add {tasks} or leave it out.{several}"
            )


def _resume(config: Config) -> Iterator[str]:
    if config.resume and config.task not in RESUMED:
        tasks = " and ".join(f"task={task}" for task in RESUMED)
        yield f"resume={config.resume}: only {tasks} can be resumed."
    if config.resume_overrides and not config.resume:
        yield "resume_overrides=true: it has no effect without resume=RUN_DIR."


def _sweep(config: Config) -> Iterator[str]:
    sweep, looking = config.sweep, config.task in LOOKS
    if sweep.dir and not looking:
        yield (
            f"sweep={sweep.dir}: it has no effect with task={config.task}; add task=status, "
            "task=report or task=deliver, or -m to go on with that sweep."
        )
    if sweep.dir and config.task == "deliver" and config.run:
        yield f"run={config.run}: not together with sweep={sweep.dir}; leave one of them out."
    if sweep.watch and config.task != "status":
        yield f"sweep.watch=true: it has no effect with task={config.task}; add task=status."


def _search(config: Config) -> Iterator[str]:
    """A search that is looked at, and one that is made. Where nothing is searched, nothing."""
    search = config.search
    if search.dir and config.task not in ("status", "report"):
        yield (
            f"search={search.dir}: it has no effect with task={config.task}; add task=status or "
            "task=report, or go on with that search by resume=DIR."
        )
    others = {"sweep": config.sweep.dir, "runs": config.runs and ",".join(config.runs)}
    for key, value in others.items():
        if search.dir and value:
            yield f"{key}={value}: not together with search={search.dir}; leave one of them out."
    if config.task != "search":
        return
    yield from _searched(config)
    if config.space.imports is not None and config.space.name == "overrides":
        yield (
            f"space.imports={config.space.imports}: it has no effect with space=overrides; set "
            "backbone.imports, or choose a space of networks."
        )
    for key in ("space", "strategy", "evaluator"):
        section = getattr(config, key)
        if section.name == OWN and section.target is None:
            yield f"{key}=own: where is it? Add {key}.target=FILE.py:NAME."
        if section.name != OWN and section.target is not None:
            yield (
                f"{key}.target={section.target}: it has no effect with {key}={section.name}; "
                f"choose {key}=own or leave it out."
            )
        if section.name != OWN and section.settings and key != "space":
            yield (
                f"{key}.settings={section.settings}: it has no effect with {key}={section.name}; "
                f"choose {key}=own or leave it out."
            )


def _searched(config: Config) -> Iterator[str]:
    search, strategy, evaluator = config.search, config.strategy, config.evaluator
    own = dict(STRATEGY_OPTIONS)
    if strategy.mutation is None:  # as many choices as there are
        own["nsga2"] = own["nsga2"] - {"mutation"}
    if strategy.size is None:  # the first that the space has
        own["pnas"] = own["pnas"] - {"size"}
    yield from _own_options(strategy, "strategy", own)
    yield from _own_options(evaluator, "evaluator", EVALUATOR_OPTIONS)
    for name in ("seconds", "scores"):
        if evaluator.name != "tabular" and (value := getattr(evaluator, name)):
            yield (
                f"evaluator.{name}={value}: it has no effect with evaluator={evaluator.name}; "
                "choose evaluator=tabular or leave it out."
            )
    if strategy.least is not None and strategy.most is not None and strategy.least > strategy.most:
        yield (
            f"strategy.least={strategy.least}: it must be at most strategy.most={strategy.most}."
        )
    if config.space.name == "overrides" and not search.choices:
        yield (
            "space=overrides: which keys? Add search.choices='{optimizer.lr: "
            "loguniform(1e-4,1e-2)}', or choose another space."
        )
    if config.space.name != "overrides" and search.choices:
        yield (
            f"search.choices={search.choices}: it has no effect with space={config.space.name}; "
            "choose space=overrides or leave it out."
        )
    if search.screen is not None and strategy.fidelity is not None:
        yield (
            f"search.screen={search.screen}: strategy={strategy.name} promotes, and what it "
            "promotes must not be left out; leave it out, or choose another strategy."
        )
    yield from _in_this_process(config)
    if evaluator.name in ("run", "inherited") and config.evaluation.split == "test":
        yield (
            "evaluation.split=test: a search must not see test classes; leave it out, and judge "
            "the answer afterwards with task=evaluate evaluation.split=test."
        )


def _in_this_process(config: Config) -> Iterator[str]:
    """Evaluators that start no runs: one candidate at a time, and what they do not do."""
    name = config.evaluator.name
    if name in ("proxy", "predicted", "inherited") and config.search.slots > 1:
        yield (
            f"search.slots={config.search.slots}: it has no effect with evaluator={name}, which "
            "measures one candidate after the other; leave it out."
        )
    if name == "proxy" and config.evaluator.proxies is not None:
        yield from _a_set("evaluator.proxies", config.evaluator.proxies)
    if name != "inherited":
        return
    parts = [part for part in ("evolution", "sparsity") if getattr(config, part).enabled]
    if parts:
        missing = " ".join(f"{part}=none" for part in parts)
        yield f"evaluator=inherited: a candidate does not evolve, and is not pruned; add {missing}."
    if config.finetune.name != "none":
        yield (
            f"finetune={config.finetune.name}: evaluator=inherited trains without labels; leave it "
            "out, or choose evaluator=run."
        )
    if config.ssl.name == "none" or not config.pretrain.epochs:
        yield (
            f"ssl={config.ssl.name} pretrain.epochs={config.pretrain.epochs}: evaluator=inherited "
            "trains each candidate; choose a method and at least one epoch."
        )
    if config.hardware.devices > 1:
        yield (
            f"hardware.devices={config.hardware.devices}: evaluator=inherited trains on one; leave "
            "it out."
        )


def _report(config: Config) -> Iterator[str]:
    runs, report = config.runs, config.report
    if runs is not None and config.task != "report":
        yield (
            f"runs={','.join(runs)}: it has no effect with task={config.task}; add task=report or "
            "leave it out."
        )
    if runs == []:
        yield "runs=[]: name at least one folder, a pattern in quotes, or LAST."
    if runs and config.sweep.dir:
        yield (
            f"runs={','.join(runs)}: not together with sweep={config.sweep.dir}; leave one of "
            "them out."
        )
    given = {f"report.output={report.output}": report.output is not None}
    reported = report.at_end and config.task in ("pipeline", "evaluate")
    given["report.published=false"] = not report.published and not reported
    for said, is_given in given.items():
        if is_given and runs is None:
            yield f"{said}: it has no effect without task=report runs=DIR1,DIR2; leave it out."


# Why a form that is asked for often is none of `export.formats`.
_WHY_REFUSED = {
    "torchscript": "TorchScript is deprecated and cannot hold these networks; its successor is pt2",
    "executorch": "ExecuTorch 1.5 cannot lower these networks (its XNNPACK pass fails on their "
    "channels-last convolutions); for small devices take onnx or onnx_int8",
}


def _taken_home(config: Config) -> Iterator[str]:
    export, predict, task = config.export, config.predict, config.task
    yield from _a_set("export.formats", export.formats)
    for name in export.formats:
        if name in _WHY_REFUSED:
            yield f"export.formats={name}: {_WHY_REFUSED[name]}."
    if export.keep == "fastest" and not {"onnx", "onnx_int8"} <= set(export.formats):
        yield "export.keep=fastest: it chooses between onnx and onnx_int8; export both."
    given = {
        f"support={config.support}": (config.support is not None, "predict"),
        f"images={','.join(config.images or ())}": (config.images is not None, "predict"),
        f"predict.output={predict.output}": (predict.output is not None, "predict"),
        f"predict.threshold={predict.threshold:g}": (predict.threshold > 0, "predict"),
        f"export.output={export.output}": (export.output is not None, "export"),
    }
    for said, (is_given, of_task) in given.items():
        if is_given and task != of_task:
            yield f"{said}: it has no effect with task={task}; add task={of_task} or leave it out."
    if task == "predict":
        if not config.support:
            yield "task=predict: which classes? Add support=FOLDER, with a folder of images each."
        if not config.images:
            yield "task=predict: which images? Add images=FILE, a folder, or a pattern in quotes."
        if predict.output and not predict.output.lower().endswith((".csv", ".json")):
            yield f"predict.output={predict.output}: its name has to end in .csv or .json."
    evaluation = config.evaluation
    if task in TAKEN_HOME:
        usual = {"method": "prototype", "support_augmentations": 0, "test_views": 1}
        for key, value in usual.items():
            if (asked := getattr(evaluation, key)) != value:
                yield (
                    f"evaluation.{key}={asked}: a network that is taken home classifies by "
                    f"prototypes of one view; leave it out, or add evaluation.{key}={value}."
                )


def _names(config: Config) -> Iterator[str]:
    name = config.experiment_name
    if PurePath(name).name != name or name == "..":
        yield f"experiment_name={name}: it names a folder; use a word without slashes."
    elif any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
        yield f"experiment_name={name!r}: it names a folder; leave control characters out."
    elif len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
        yield f"experiment_name={name[:40]}…: it names a folder; {LONGEST_NAME} bytes are the most."


def _dataset(config: Config) -> Iterator[str]:
    dataset = config.dataset
    yield from _own_options(dataset, "dataset", DATASET_OPTIONS)
    ways = SPLIT_BY.get(dataset.name, ("folder", "classes"))
    if dataset.split_by not in ways:
        yield (
            f"dataset.split_by={dataset.split_by}: with dataset={dataset.name} choose one of "
            f"{', '.join(ways)}."
        )
    if dataset.name in ROOTED and not dataset.root:
        what = "CSV file" if dataset.name == "csv" else "folder with one sub-folder per class"
        yield f"dataset={dataset.name}: which images? Add dataset.root=PATH, a {what}."
    if dataset.name == "digits" and dataset.root:
        yield (
            f"dataset.root={dataset.root}: it has no effect with dataset=digits, which comes with "
            "scikit-learn; choose dataset=folder, dataset=sketch or dataset=csv."
        )
    if len(dataset.background) != 3:
        yield (
            f"dataset.background={dataset.background}: three numbers from 0 to 255 are needed, "
            "red, green and blue, such as [255,255,255]."
        )
    values = dataset.value_range
    if values is not None and not (len(values) == 2 and values[0] < values[1]):
        yield (
            f"dataset.value_range={values}: two numbers are needed, [low,high], the values that "
            "are black and white, such as [0,4095]."
        )
    if dataset.name == "digits" and values is not None:
        yield f"dataset.value_range={values}: it has no effect with dataset=digits; leave it out."
    fractions = dataset.split_fractions
    if fractions is None and dataset.name not in ROOTED:
        yield (
            f"dataset.split_fractions=null: with dataset={dataset.name} three numbers are needed, "
            "for train, val and test."
        )
    if fractions is not None and (len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-6):
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
    for key, views in (("views", config.views), ("finetune.views", config.finetune.views)):
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "zoom", "thickness", "erase_area"):
            pair = getattr(views, name)
            if len(pair) != 2 or pair[0] > pair[1]:
                yield f"{key}.{name}={pair}: two numbers are needed, [low, high]."
        yield from _ink(config.dataset, key, views)


def _ink(dataset: DatasetConfig, key: str, views: ViewsConfig) -> Iterator[str]:
    """What is known of the ink of a dataset agrees with the views, where that has an effect."""
    ink = "light" if dataset.invert else "dark"
    if dataset.name == "omniglot" and views.strokes and views.ink != ink:
        yield (
            f"{key}.ink={views.ink}: the strokes of dataset=omniglot are {ink} with "
            f"dataset.invert={str(dataset.invert).lower()}; set {key}.ink={ink}."
        )


def _architecture(config: Config) -> Iterator[str]:
    channels, evolution = config.backbone.channels, config.evolution
    if not evolution.enabled or not channels or config.backbone.name not in EVOLVABLE:
        return
    yield from _a_set("evolution.operators", evolution.operators)
    if evolution.grow_positions != "last" and evolution.grow_mode == "fresh":
        yield (
            f"evolution.grow_positions={evolution.grow_positions}: with evolution.grow_mode=fresh "
            "a block is added after the last one only; set evolution.grow_mode=preserve, or "
            "evolution.grow_positions=last."
        )
    if len(_blocks(config.backbone)) > evolution.max_blocks:
        yield (
            f"evolution.max_blocks={evolution.max_blocks}: {_asked(config.backbone)} "
            "starts with more blocks."
        )
    if max(channels) > evolution.max_channels:
        yield (
            f"evolution.max_channels={evolution.max_channels}: backbone.channels={channels} "
            "starts with more channels."
        )
    yield from _order(evolution)
    blocks = _blocks(config.backbone)
    seed = f"the seed network, {_asked(config.backbone)}, has"
    refused = list(_caps_below(config, blocks, f"{seed} {{}} already; raise it, start smaller, or"))
    yield from refused
    most = evolution.blocks_per_stage
    if evolution.order != "trials" and most and not refused:
        grown = _grown(blocks, config.dataset.image_size, most)
        last = f"with evolution.blocks_per_stage={most} the network grows"
        if len(grown) > evolution.max_blocks:
            yield (
                f"evolution.max_blocks={evolution.max_blocks}: {last} to {len(grown)} blocks; "
                f"raise it, or lower evolution.blocks_per_stage."
            )
        yield from _caps_below(
            config, grown, f"{last} to {{}}; raise it, start smaller, lower that, or"
        )


def _order(evolution: EvolutionConfig) -> Iterator[str]:
    """Every option of an order is given where it has effect, and expansions follow in time."""
    shares, balanced = evolution.expand_at, evolution.order != "trials"
    for key in ("expand_at", "blocks_per_stage"):
        value = getattr(evolution, key)
        if balanced and (value is None or value == []):
            given = "null" if value is None else "[]"
            yield f"evolution.{key}={given}: evolution.order={evolution.order} needs a value."
        if not balanced and value is not None:
            yield (
                f"evolution.{key}={value}: it has no effect with evolution.order=trials; choose "
                "evolution=balanced, or leave it out."
            )
    if shares is not None and shares != sorted(set(shares)):
        yield f"evolution.expand_at={shares}: name each share once, from early to late."


def _grown(blocks: Sequence[tuple[int, bool]], side: int, most: int) -> list[tuple[int, bool]]:
    """Those of the network that `grow_stages` leads to, where every stage has `most` or more."""
    grown: list[tuple[int, bool]] = []
    for stage in counting.stages(counting.sides(side, [pools for _, pools in blocks])):
        width, pools = blocks[stage[-1]]
        kept = [blocks[number] for number in stage[:-1]]
        added = max(0, most - len(stage))
        grown += [*kept, *[(width, False)] * added, (width, pools)]
    return grown


def _caps_below(config: Config, blocks: Sequence[tuple[int, bool]], said: str) -> Iterator[str]:
    """Caps on params and flops hold for a network of `blocks`, too: it is to be under them."""
    backbone, evolution = config.backbone, config.evolution
    kernel = backbone.kernel_size or 0
    channels, pooling = zip(*blocks, strict=True)
    widths = [backbone.in_channels, *channels]
    at = counting.sides(evolution.cap_resolution, pooling)
    norm = bool(backbone.batch_norm)
    has = {
        "max_params": (counting.params(widths, kernel_size=kernel, batch_norm=norm), "parameters"),
        "max_flops": (
            2 * counting.macs(widths, at, [kernel**2] * len(channels)),
            f"flops at evolution.cap_resolution={evolution.cap_resolution}",
        ),
    }
    for name, (figure, what) in has.items():
        cap = getattr(evolution, name)
        if figure >= cap:
            has_them = said.format(f"{figure:,} {what}")
            yield f"evolution.{name}={cap}: {has_them} add evolution=none."


def _blocks(backbone: BackboneConfig) -> list[tuple[int, bool]]:
    """Of every block of the network to start from its channels and whether it pools."""
    return counting.blocks(
        backbone.channels or [],
        per_stage=backbone.blocks_per_stage or 1,
        pooling=bool(backbone.pooling),
        pooled=backbone.pooled_blocks,
    )


def _asked(backbone: BackboneConfig) -> str:
    """The keys that say how wide and deep it is."""
    per_stage = backbone.blocks_per_stage or 1
    more = f" backbone.blocks_per_stage={per_stage}" if per_stage > 1 else ""
    return f"backbone.channels={backbone.channels}{more}"


def _sparsity(config: Config) -> Iterator[str]:
    """A block keeps `min_channels`, in multiples of `round_to`: there must be wider ones."""
    sparsity, evolution, channels = config.sparsity, config.evolution, config.backbone.channels
    if not sparsity.enabled or not channels or config.backbone.name not in EVOLVABLE:
        return
    widest = max([*channels, evolution.max_channels] if evolution.enabled else channels)
    key = "evolution.max_channels" if widest > max(channels) else "backbone.channels"
    kept = -(-sparsity.min_channels // sparsity.round_to) * sparsity.round_to
    if kept >= widest:
        yield (
            f"sparsity.min_channels={sparsity.min_channels}: no block is ever wider than {widest} "
            f"({key}; sparsity.round_to={sparsity.round_to}), so nothing could be pruned; lower "
            "it, or add sparsity=none."
        )


def _backbone(config: Config) -> Iterator[str]:
    backbone, dataset = config.backbone, config.dataset
    yield from _own_options(backbone, "backbone", BACKBONE_OPTIONS)
    if backbone.in_channels != dataset.channels:
        yield (
            f"backbone.in_channels={backbone.in_channels}: the images have dataset.channels="
            f"{dataset.channels}; set one of them to the other, or leave backbone.in_channels out."
        )
    yield from _pretrained(config)
    if backbone.imports is not None and backbone.name != SEARCHED and config.task != "search":
        yield (
            f"backbone.imports={backbone.imports}: it has no effect with backbone={backbone.name}; "
            "choose backbone=searched or leave it out."
        )
    parts = [part for part in ("evolution", "sparsity") if getattr(config, part).enabled]
    if backbone.name not in EVOLVABLE and parts and config.task == "pipeline":
        missing = " ".join(f"{part}=none" for part in parts)
        yield f"backbone={backbone.name}: it does not evolve and is not pruned; add {missing}."
    if backbone.channels == []:
        yield "backbone.channels=[]: at least one block is needed, such as [16,32,64]."
    elif backbone.name in RESNET12 and backbone.channels and len(backbone.channels) != 4:
        yield (
            f"backbone.channels={backbone.channels}: backbone={backbone.name} has four blocks, "
            "such as [64,160,320,640]."
        )
    yield from _pooled(backbone)
    patch = backbone.patch_size
    if patch is not None and dataset.image_size % patch:
        fitting = [n for n in range(4, 33) if dataset.image_size % n == 0]
        yield (
            f"backbone.patch_size={patch}: it must divide dataset.image_size={dataset.image_size}; "
            f"set one of {fitting}, or another dataset.image_size."
        )


def _pooled(backbone: BackboneConfig) -> Iterator[str]:
    pooled = backbone.pooled_blocks
    if pooled is None:
        return
    if backbone.name not in EVOLVABLE or not backbone.pooling:
        why = f"backbone={backbone.name}" if backbone.name not in EVOLVABLE else "pooling=false"
        yield f"backbone.pooled_blocks={pooled}: it has no effect with {why}; leave it out."
    elif backbone.channels and pooled > len(backbone.channels):
        yield (
            f"backbone.pooled_blocks={pooled}: backbone.channels={backbone.channels} has only "
            f"{len(backbone.channels)} blocks."
        )


def _pretrained(config: Config) -> Iterator[str]:
    backbone, weights = config.backbone, config.backbone.weights
    if not weights:
        return
    if backbone.name not in PRETRAINED:
        yield (
            f"backbone.weights={weights}: it has no effect with backbone={backbone.name}; "
            f"choose one of {', '.join(PRETRAINED)}, or leave it out."
        )
    elif weights == "imagenet" and backbone.name not in RESNETS:
        yield (
            f"backbone.weights=imagenet: torchvision has none for backbone={backbone.name}; "
            f"choose one of {', '.join(RESNETS)}, or set backbone.weights=FILE."
        )
    elif weights == "imagenet" and backbone.stem == "small":
        yield (
            "backbone.stem=small: backbone.weights=imagenet fits backbone.stem=imagenet only; "
            "leave one of them out."
        )
    elif weights == "imagenet" and backbone.in_channels != 3:
        yield (
            "backbone.weights=imagenet: these take images of 3 channels; set dataset.channels=3, "
            "which repeats the one of grey images."
        )


def _ssl(config: Config) -> Iterator[str]:
    ssl, backbone = config.ssl, config.backbone
    yield from _own_options(ssl, "ssl", SSL_OPTIONS)
    if ssl.teacher_temperature is not None and len(ssl.teacher_temperature) != 2:
        yield (
            f"ssl.teacher_temperature={ssl.teacher_temperature}: two numbers are needed, "
            "[first, last]."
        )
    for key in ("global_scale", "local_scale"):
        scale = getattr(ssl, key)
        if scale is not None and (len(scale) != 2 or scale[0] > scale[1]):
            yield f"ssl.{key}={scale}: two numbers are needed, [low, high]."
    fixed = backbone.embedding == "flatten" or backbone.name == "vit_small"
    if ssl.local_views and ssl.local_size != 1 and fixed:
        other = " or backbone.embedding=average" if backbone.embedding == "flatten" else ""
        yield (
            f"ssl.local_size={ssl.local_size}: backbone={backbone.name} embeds images of one size "
            f"only; set ssl.local_size=1{other}."
        )


def _untrained(config: Config) -> Iterator[str]:
    parts = [part for part in ("evolution", "sparsity") if getattr(config, part).enabled]
    tuned = any(stage.finetune.evolve for stage in stages_of(config))
    if config.ssl.name == "none" and parts and not tuned:
        missing = " ".join(f"{part}=none" for part in parts)
        yield (
            f"ssl=none: nothing is trained, so add {missing}, or choose ablation=A1. Under labels "
            "they work with finetune=linear finetune.evolve=true."
        )


def _evaluation(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    if evaluation.shots is not None:
        yield from _a_set("evaluation.shots", evaluation.shots)
    yield from _a_set("evaluation.datasets", evaluation.datasets)
    for name in evaluation.datasets:
        if name in ROOTED and name != config.dataset.name:
            yield (
                f"evaluation.datasets={evaluation.datasets}: {name} is only possible together "
                f"with dataset={name} dataset.root=PATH."
            )
    for k in evaluation.top_k:
        if evaluation.ways is not None and k >= evaluation.ways:
            yield (
                f"evaluation.top_k={list(evaluation.top_k)}: {k} of evaluation.ways="
                f"{evaluation.ways} classes always hold the true one; take less than "
                f"{evaluation.ways}."
            )
    if len(set(evaluation.top_k)) != len(evaluation.top_k):
        yield f"evaluation.top_k={list(evaluation.top_k)}: none twice."
    if evaluation.test_views > 1:
        views = f"evaluation.test_views={evaluation.test_views}"
        if evaluation.method == "maml":
            yield (
                f"{views}: it averages embeddings, and evaluation.method=maml adapts to the "
                "images; leave it out."
            )
        if evaluation.support_augmentations:
            yield (
                f"{views}: not together with evaluation.support_augmentations="
                f"{evaluation.support_augmentations}, which has other views of the support alone; "
                "leave one of them out."
            )
    if evaluation.method == "sinkhorn" and evaluation.queries == 1:
        yield (
            "evaluation.queries=1: evaluation.method=sinkhorn judges the queries of a class "
            "together and needs several; set evaluation.queries to 2 or more, or choose an "
            "inductive method, such as evaluation.method=prototype."
        )


def _finetune(config: Config) -> Iterator[str]:
    options, evaluation = config.finetune, config.evaluation
    method = evaluation.method
    if method in HEADED and config.task == "pipeline" and options.name != method:
        yield (
            f"evaluation.method={method}: it needs what finetune={method} trains; add that, or "
            "choose another evaluation.method."
        )
    if method in HEADED and evaluation.normalize != "none":
        yield (
            f"evaluation.normalize={evaluation.normalize}: evaluation.method={method} "
            "was trained on features as they are; set evaluation.normalize=none."
        )
    if method == "maml" and evaluation.support_augmentations:
        yield (
            f"evaluation.support_augmentations={evaluation.support_augmentations}: it averages "
            "embeddings, and evaluation.method=maml adapts to the images; leave it out."
        )
    if options.name == "none":
        if options.start:
            yield (
                f"finetune.from={options.start}: it has no effect with finetune=none; choose how "
                f"to fine-tune: {', '.join(f'finetune={name}' for name in FINETUNING[1:])}."
            )
        return
    yield from _of_stages(config, _stage)
    if config.hardware.compile and config.ssl.name == "none":
        yield "hardware.compile=true: it has no effect on fine-tuning; leave it out."


def _stage(config: Config) -> Iterator[str]:
    """One stage of fine-tuning."""
    options, evaluation = config.finetune, config.evaluation
    if options.evolve:
        yield from _evolving(config)
    fitted = set() if options.queries is not None else {"queries"}
    own = {name: having - fitted for name, having in FINETUNE_OPTIONS.items()}
    yield from _own_options(options, "finetune", own)
    headless = ("prototypical", "matching")
    if options.freeze == "encoder" and options.name in headless:
        yield (
            f"finetune.freeze=encoder: finetune={options.name} trains nothing else; leave it out, "
            "or set finetune.frozen_blocks."
        )
    if options.freeze == "encoder" and options.frozen_blocks:
        yield (
            f"finetune.frozen_blocks={options.frozen_blocks}: finetune.freeze=encoder freezes all "
            "blocks; leave one of them out."
        )
    if options.name == "maml" and options.freeze_norms:
        yield (
            "finetune.freeze_norms=true: finetune=maml adapts and is judged with the statistics of "
            "each batch; leave it out."
        )
    given = None not in (options.ways, evaluation.ways)
    if options.name == "maml" and given and options.ways != evaluation.ways:
        yield (
            f"finetune.ways={options.ways}: the head of finetune=maml has as many classes as the "
            f"episodes that judge it; set evaluation.ways={options.ways} or finetune.ways="
            f"{evaluation.ways}."
        )
    if config.hardware.compile and config.ssl.name == "none":
        value = str(config.hardware.compile).lower()
        yield f"hardware.compile={value}: it has no effect on fine-tuning; leave it out."


def _evolving(config: Config) -> Iterator[str]:
    """Evolution and pruning while fine-tuning."""
    options, evolution, sparsity = config.finetune, config.evolution, config.sparsity
    said = f"finetune.evolve=true: it is not possible with finetune={options.name}"
    if options.name == "maml":
        yield f"{said}, whose inner steps are those of one network; choose another method."
    if not (evolution.enabled or sparsity.enabled):
        yield "finetune.evolve=true: nothing changes the network; add evolution=balanced."
    if evolution.enabled and evolution.order == "trials":
        yield (
            "finetune.evolve=true: evolution.order=trials compares networks on images that are not "
            "trained on, and the base split has none of these with labels; add evolution=balanced, "
            "or evolution=none."
        )
    if sparsity.enabled and sparsity.rollback_grace_epochs:
        yield (
            "finetune.evolve=true: sparsity.rollback_grace_epochs="
            f"{sparsity.rollback_grace_epochs} is for pretraining, under labels a pruning is "
            "judged at once: add sparsity.rollback_grace_epochs=0, or sparsity=none."
        )
    for key in ("frozen_blocks", "freeze_norms"):
        if value := getattr(options, key):
            yield (
                f"finetune.{key}={str(value).lower()}: what is frozen does not grow; leave it out, "
                "or finetune.evolve."
            )
    if options.freeze == "encoder":
        yield (
            "finetune.freeze=encoder: what is frozen does not grow; leave it out, or "
            "finetune.evolve."
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
        {
            "cosine": {"final_ratio"},
            "step": {"step_size", "gamma"},
            "constant": set(),
            "constant_decay": {"final_ratio", "decay_share"},
        },
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
        _search,
        _report,
        _taken_home,
        _names,
        _dataset,
        _curriculum,
        _views,
        _backbone,
        _architecture,
        _sparsity,
        _ssl,
        _untrained,
        _evaluation,
        _finetune,
        _optimizer,
        _scheduler,
        _tracking,
    ),
)
