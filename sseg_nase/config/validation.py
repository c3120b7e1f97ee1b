"""What the types of the schema cannot say: choices, bounds, and keys that must agree."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, cast

from sseg_nase import counting
from sseg_nase.config.ablations import Switches, ablations, switches_of
from sseg_nase.config.conf_files import group_option, usual_of
from sseg_nase.config.explain import described, fits, listed, shown
from sseg_nase.config.groups.backbone import BackboneConfig, Chain
from sseg_nase.config.groups.curriculum import SYNTHETIC_LEVELS
from sseg_nase.config.groups.dataset import (
    Closed,
    DatasetConfig,
    Omniglot,
    OwnImages,
    Stl10,
    is_closed,
)
from sseg_nase.config.groups.evaluation import (
    CLASSIFIER,
    CLOSED_SETS,
    EPISODES,
    PROBE,
    PROTOTYPE,
    MethodConfig,
)
from sseg_nase.config.groups.evaluator import (
    OfInherited,
    OfPredictor,
    OfProxies,
    OfRuns,
    OfTable,
)
from sseg_nase.config.groups.evolution import EvolutionConfig, Planned, Trials
from sseg_nase.config.groups.finetune import (
    DISTILLING,
    Classifier,
    FinetuneConfig,
    Linear,
    Maml,
    Matching,
    Relation,
)
from sseg_nase.config.groups.oneshot import OneShot
from sseg_nase.config.groups.optimizer import SGD, OptimizerConfig
from sseg_nase.config.groups.space import OfKeys
from sseg_nase.config.groups.ssl import DINO
from sseg_nase.config.groups.strategy import Promoting
from sseg_nase.config.groups.tracking import InStore
from sseg_nase.config.layout import WRITTEN_AS, is_section
from sseg_nase.config.options import fields_of, is_group, names_with, option_of, options_of
from sseg_nase.config.schema import (
    OF_SWEEPS,
    RESUMED,
    TAKEN_HOME,
    Config,
    ViewsConfig,
)
from sseg_nase.config.sequence import in_words, stages_of, trained
from sseg_nase.config.sizes import sizes_of
from sseg_nase.errors import UserError, did_you_mean

# Beyond it whole numbers have no room in what computes with them, and float32 has infinities.
LARGEST = 10**18
LONGEST_NAME = 200  # in bytes; file systems take 255


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
    return switches_of(dataclasses.asdict(config))


def cautions(config: Config, *further: Path) -> list[str]:
    """Return what is accepted but probably not meant, one sentence each.

    `further` are config folders beside `conf/`, which may have ablations, too.
    """
    return [
        *_unlike_its_ablation(config, *further),
        *_placed_in_vain(config),
        *_unlabeled_in_vain(config),
        *_evaluated_in_vain(config),
        *_evaluated_otherwise(config),
        *_far_out(config),
    ]


def without_effect(config: Config, keys: Iterable[str]) -> list[str]:
    """Return a sentence for each of the given keys of a part of the method that is switched off.

    They are no mistakes: a sweep may give them to runs that have the part and runs that have not.
    """
    found = []
    for key in keys:
        section, _, name = key.partition(".")
        group = "ssl" if section == "pretrain" else section  # which trains with a method of ssl
        part = getattr(config, group, None)
        off = getattr(part, "name", None) == "none" or not getattr(part, "enabled", True)
        if off and name not in ("", "enabled"):
            found.append(f"{key}: it has no effect with {group}=none.")
    return found


USUAL_MOMENTUM = 0.9
_SANE_TEMPERATURES = (0.01, 10)  # of cosines; SimCLR and its successors take 0.05 to 1
_SANE_INNER_RATES = (1e-5, 10)  # MAML takes 0.01 to 0.5


def _far_out(config: Config) -> Iterator[str]:
    """Rates and temperatures with which training will hardly work, though they are possible."""
    if config.task != "pipeline":
        return
    given: dict[str, tuple[float, tuple[float, float]]] = {}
    optimizer, ssl, finetune = config.optimizer, config.ssl, config.finetune
    if ssl.trains and config.pretrain.epochs and finetune.start is None:
        if optimizer.usual_rates is not None:
            given["optimizer.lr"] = optimizer.lr, optimizer.usual_rates
        yield from _far_in_sum(config)
        for name in ("temperature", "student_temperature"):
            if name in ssl.temperatures:
                given[f"ssl.{name}"] = getattr(ssl, name), _SANE_TEMPERATURES
    for stage in stages_of(config):
        begins, tuning = in_words(stage, config), stage.finetune
        rates = option_of(OptimizerConfig, tuning.optimizer).usual_rates
        if tuning.freeze != "encoder":
            given[f"{begins}.lr_encoder"] = tuning.lr_encoder, rates
        given[f"{begins}.lr_head"] = tuning.lr_head, rates
        if isinstance(tuning, Maml):
            given[f"{begins}.inner_lr"] = tuning.inner_lr, _SANE_INNER_RATES
    for key, (value, (low, high)) in given.items():
        if not low <= value <= high:
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
    optimizer = config.optimizer
    if not isinstance(optimizer, SGD) or optimizer.lr > SGD.usual_rates[1]:
        return
    rate, momentum = optimizer.lr, optimizer.momentum
    total, most = rate / (1 - momentum), SGD.usual_rates[1] / (1 - USUAL_MOMENTUM)
    if total > most:
        yield (
            f"optimizer.lr={rate:g} optimizer.momentum={momentum:g}: steps add up to "
            f"lr / (1 - momentum) = {total:g}, which is very high: {most:g} is the highest that is "
            "usual; it will probably diverge."
        )


def _unlike_its_ablation(config: Config, *further: Path) -> list[str]:
    if config.ablation is None:
        return []
    known = ablations(*further)
    if config.ablation not in known:
        return [
            f"ablation={config.ablation}: there is no file of that name in conf/ablation, so "
            f"nothing says what it is; there are {', '.join(known)}."
        ]
    meant, given = known[config.ablation].switches._asdict(), switches(config)._asdict()
    if config.curriculum.levels == ["NATURAL"]:
        given["progression"] = meant["progression"]  # one level has no order
    words = {True: "with", False: "without"}
    return [
        f"ablation={config.ablation} is defined {words[on]} {part}, but this run is {words[not on]}"
        " it: do not compare it under that name."
        for part, on in meant.items()
        if given[part] != on
    ]


def _evaluated_otherwise(config: Config) -> list[str]:
    tuning, method = config.finetune, config.evaluation.method
    own = tuning.evaluated_by
    if config.task != "pipeline" or own in (method, PROTOTYPE):
        return []
    return [
        f"evaluation.method={method}: finetune={tuning.name} trains for, and is chosen by, "
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


def _unlabeled_in_vain(config: Config) -> list[str]:
    if not isinstance(config.dataset, Stl10) or not config.dataset.unlabeled:
        return []
    trains = config.ssl.trains and config.pretrain.epochs > 0
    if config.task != "pipeline" or (trains and "NATURAL" in config.curriculum.levels):
        return []
    return [
        "dataset.unlabeled=true: its images are trained on with a method of ssl and the level "
        "NATURAL alone, which curriculum=natural and curriculum=progressive have."
    ]


def _evaluated_in_vain(config: Config) -> list[str]:
    """Options of the evaluation that were changed from `conf/` and have no effect in this run."""
    evaluation = config.evaluation
    usual = group_option("evaluation", evaluation.name)
    open_set = evaluation.name == EPISODES
    effective = {"metric": open_set and evaluation.method == PROTOTYPE}
    names = (name for name in options_of(MethodConfig) if name in usual)
    effective |= {name: open_set and evaluation.method == name for name in names}
    effective["dirichlet_alpha"] = open_set and evaluation.query_balance == "dirichlet"
    effective |= {name: evaluation.name == name for name in CLOSED_SETS if name in usual}
    needed = {"metric": ".method=prototype", "dirichlet_alpha": ".query_balance=dirichlet"}
    needed |= {name: f"={name}" for name in CLOSED_SETS}
    given = dataclasses.asdict(evaluation)
    return [
        f"evaluation.{name}: it was changed but has no effect without "
        f"evaluation{needed.get(name, f'.method={name}')}."
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
    sweep, looking = config.sweep, config.task in OF_SWEEPS
    if sweep.dir and not looking:
        yield (
            f"sweep={sweep.dir}: it has no effect with task={config.task}; add task=status, "
            "task=report or task=deliver, or -m to resume that sweep."
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
            "task=report, or resume that search by resume=DIR."
        )
    others = {"sweep": config.sweep.dir, "runs": config.runs and ",".join(config.runs)}
    for key, value in others.items():
        if search.dir and value:
            yield f"{key}={value}: not together with search={search.dir}; leave one of them out."
    if config.task != "search":
        return
    yield from _searched(config)
    if config.space.imports is not None and isinstance(config.space, OfKeys):
        yield (
            f"space.imports={config.space.imports}: it has no effect with space=overrides; set "
            "backbone.imports, or choose a space of networks."
        )


def _searched(config: Config) -> Iterator[str]:
    search, strategy, evaluator = config.search, config.strategy, config.evaluator
    if isinstance(config.space, OfKeys) and not search.choices:
        yield (
            "space=overrides: which keys? Add search.choices='{optimizer.lr: "
            "loguniform(1e-4,1e-2)}', or choose another space."
        )
    if not isinstance(config.space, OfKeys) and search.choices:
        yield (
            f"search.choices={search.choices}: it has no effect with space={config.space.name}; "
            "choose space=overrides or leave it out."
        )
    if search.screen is not None and isinstance(strategy, Promoting):
        yield (
            f"search.screen={search.screen}: strategy={strategy.name} promotes, and what it "
            "promotes must not be left out; leave it out, or choose another strategy."
        )
    if isinstance(strategy, OneShot):
        yield from _one_shot(config, strategy)
    yield from _in_this_process(config)
    if isinstance(evaluator, OfRuns | OfInherited) and config.evaluation.split == "test":
        yield (
            "evaluation.split=test: a search must not see test classes; leave it out, and evaluate "
            "the answer afterwards with task=evaluate evaluation.split=test."
        )


def _one_shot(config: Config, strategy: OneShot) -> Iterator[str]:
    """One network is trained that contains all others: nothing is asked for, nor measured."""
    said = f"strategy={strategy.name}: "
    if not isinstance(config.evaluator, OfRuns):
        yield (
            f"evaluator={config.evaluator.name}: {said}it scores networks with the weights of its "
            "supernet; leave the evaluator out."
        )
    if config.search.screen is not None:
        yield (
            f"search.screen={config.search.screen}: {said}it asks for no candidates that could be "
            "left out; leave it out."
        )
    if config.hardware.devices > 1:
        yield f"hardware.devices={config.hardware.devices}: {said}it trains on one; leave it out."
    if strategy.objective == "ssl" and not config.ssl.trains:
        yield f"strategy.objective=ssl: ssl={config.ssl.name} trains nothing; choose a method."


def _in_this_process(config: Config) -> Iterator[str]:
    """Evaluators that start no runs: one candidate at a time, and what they do not do."""
    evaluator = config.evaluator
    here = isinstance(evaluator, OfProxies | OfPredictor | OfInherited)
    if here and config.search.slots > 1:
        yield (
            f"search.slots={config.search.slots}: it has no effect with "
            f"evaluator={evaluator.name}, which measures one candidate after the other; set it to "
            "1."
        )
    fidelity = getattr(config.strategy, "fidelity", None)
    if fidelity is not None and (here or isinstance(evaluator, OfTable)):
        yield (
            f"strategy={config.strategy.name} strategy.fidelity={fidelity}: it has no effect with "
            f"evaluator={evaluator.name}, which measures all candidates alike; choose "
            "evaluator=run, or a strategy without a fidelity."
        )
    if isinstance(evaluator, OfProxies):
        yield from _a_set("evaluator.proxies", evaluator.proxies)
    if not isinstance(evaluator, OfInherited):
        return
    parts = [part for part in ("evolution", "sparsity") if getattr(config, part).enabled]
    if parts:
        missing = " ".join(f"{part}=none" for part in parts)
        yield f"evaluator=inherited: a candidate does not evolve, and is not pruned; add {missing}."
    if config.finetune.start is not None:
        yield (
            f"finetune.from={config.finetune.start}: with evaluator=inherited a candidate begins "
            "with the weights of the closest one before it; leave it out."
        )
    if not config.finetune.trains and not (config.ssl.trains and config.pretrain.epochs):
        yield (
            f"ssl={config.ssl.name} pretrain.epochs={config.pretrain.epochs} finetune="
            f"{config.finetune.name}: evaluator=inherited trains each candidate; choose a method "
            "of ssl and at least one epoch, or a method of finetune."
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
    if report.control and config.task != "pipeline":
        yield f"report.control=true: it has no effect with task={config.task}; leave it out."
    elif report.control and not _evolves(config):
        yield (
            "report.control=true: nothing changes the network of this run, so that its control "
            "would be the same again; leave it out, or add evolution or sparsity."
        )
    given = {f"report.output={report.output}": report.output is not None}
    reported = report.at_end and config.task in ("pipeline", "evaluate")
    given["report.published=false"] = not report.published and not reported
    for said, is_given in given.items():
        if is_given and runs is None:
            yield f"{said}: it has no effect without task=report runs=DIR1,DIR2; leave it out."


def _evolves(config: Config) -> bool:
    """Whether anything is trained in which evolution or pruning may change the network."""
    pretrained = config.ssl.name != "none" and config.pretrain.epochs and not config.finetune.start
    tuned = any(stage.finetune.evolve for stage in stages_of(config))
    return bool((config.evolution.enabled or config.sparsity.enabled) and (pretrained or tuned))


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
        usual = {"method": PROTOTYPE, "support_augmentations": 0, "test_views": 1}
        for key, value in usual.items():
            if (asked := getattr(evaluation, key)) != value:
                yield (
                    f"evaluation.{key}={asked}: a network that is taken home classifies by "
                    f"prototypes of one view; leave it out, or add evaluation.{key}={value}."
                )


def _page(config: Config) -> Iterator[str]:
    ui = config.ui
    if config.task != "ui":
        if ui.remote:
            yield (
                f"ui.remote=true: it has no effect with task={config.task}; add task=ui or leave "
                "it out."
            )
    elif not ui.remote and not _of_this_machine_alone(ui.address):
        yield (
            f"ui.address={ui.address}: other machines reach it, and whoever opens the page starts "
            "programs as you. Leave it out, and open the page through a tunnel (there: ssh -L "
            f"{ui.port}:127.0.0.1:{ui.port} THIS_MACHINE); or add ui.remote=true."
        )


def _of_this_machine_alone(address: str) -> bool:
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _names(config: Config) -> Iterator[str]:
    name = config.experiment_name
    if PurePath(name).name != name or name == "..":
        yield f"experiment_name={name}: it names a folder; use a word without slashes."
    elif any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name):
        yield f"experiment_name={name!r}: it names a folder; leave control characters out."
    elif len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
        yield f"experiment_name={name[:40]}…: it names a folder; {LONGEST_NAME} bytes are the most."


def _curriculum(config: Config) -> Iterator[str]:
    curriculum = config.curriculum
    yield from _a_set("curriculum.levels", curriculum.levels)
    for level in curriculum.levels:
        if level in SYNTHETIC_LEVELS and level not in curriculum.images:
            yield f"curriculum.images.{level}: the level is used, so a number is needed."
    if curriculum.export and config.task != "curriculum":
        yield (
            f"curriculum.export={curriculum.export}: it has no effect with task={config.task}; add "
            "task=curriculum or leave it out."
        )


def _views(config: Config) -> Iterator[str]:
    for key, views in (("views", config.views), ("finetune.views", config.finetune.views)):
        for name in ("crop_scale", "crop_ratio", "blur_sigma", "zoom", "thickness", "erase_area"):
            pair = getattr(views, name)
            if len(pair) != 2 or pair[0] > pair[1]:
                yield f"{key}.{name}={pair}: two numbers are needed, [low, high]."
        yield from _ink(config.dataset, key, views)


def _ink(dataset: DatasetConfig, key: str, views: ViewsConfig) -> Iterator[str]:
    """What is known of the ink of a dataset agrees with the views, where that has an effect."""
    if not isinstance(dataset, Omniglot):
        return
    ink = "light" if dataset.invert else "dark"
    if views.strokes and views.ink != ink:
        yield (
            f"{key}.ink={views.ink}: the strokes of dataset=omniglot are {ink} with "
            f"dataset.invert={str(dataset.invert).lower()}; set {key}.ink={ink}."
        )


def _architecture(config: Config) -> Iterator[str]:
    backbone, evolution = config.backbone, config.evolution
    if not evolution.enabled or not isinstance(backbone, Chain) or not backbone.channels:
        return
    channels = backbone.channels
    yield from _a_set("evolution.operators", evolution.operators)
    if evolution.grow_positions != "last" and evolution.grow_mode == "fresh":
        yield (
            f"evolution.grow_positions={evolution.grow_positions}: with evolution.grow_mode=fresh "
            "a block is added after the last one only; set evolution.grow_mode=preserve, or "
            "evolution.grow_positions=last."
        )
    if len(_blocks(backbone)) > evolution.max_blocks:
        yield (
            f"evolution.max_blocks={evolution.max_blocks}: {_asked(backbone)} "
            "starts with more blocks."
        )
    if max(channels) > evolution.max_channels:
        yield (
            f"evolution.max_channels={evolution.max_channels}: backbone.channels={channels} "
            "starts with more channels."
        )
    blocks = _blocks(backbone)
    seed = f"the seed network, {_asked(backbone)}, has"
    refused = list(
        _caps_below(
            backbone, evolution, blocks, f"{seed} {{}} already; raise it, start smaller, or"
        )
    )
    yield from refused
    if isinstance(evolution, Planned) and not refused:
        most = evolution.blocks_per_stage
        grown = _grown(blocks, config.dataset.image_size, most)
        last = f"with evolution.blocks_per_stage={most} the network grows"
        if len(grown) > evolution.max_blocks:
            yield (
                f"evolution.max_blocks={evolution.max_blocks}: {last} to {len(grown)} blocks; "
                f"raise it, or lower evolution.blocks_per_stage."
            )
        yield from _caps_below(
            backbone, evolution, grown, f"{last} to {{}}; raise it, start smaller, lower that, or"
        )


def _grown(blocks: Sequence[tuple[int, bool]], side: int, most: int) -> list[tuple[int, bool]]:
    """Those of the network that `grow_stages` leads to, where every stage has `most` or more."""
    grown: list[tuple[int, bool]] = []
    for stage in counting.stages(counting.sides(side, [pools for _, pools in blocks])):
        width, pools = blocks[stage[-1]]
        kept = [blocks[number] for number in stage[:-1]]
        added = max(0, most - len(stage))
        grown += [*kept, *[(width, False)] * added, (width, pools)]
    return grown


def _caps_below(
    backbone: Chain, evolution: EvolutionConfig, blocks: Sequence[tuple[int, bool]], said: str
) -> Iterator[str]:
    """Caps on params and flops hold for a network of `blocks`, too: it is to be under them."""
    kernel = backbone.kernel_size
    channels, pooling = zip(*blocks, strict=True)
    widths = [backbone.in_channels, *channels]
    at = counting.sides(evolution.cap_resolution, pooling)
    norm = backbone.batch_norm
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


def _blocks(backbone: Chain) -> list[tuple[int, bool]]:
    """Of every block of the network to start from its channels and whether it pools."""
    return counting.blocks(
        backbone.channels,
        per_stage=backbone.blocks_per_stage,
        pooling=backbone.pooling,
        pooled=backbone.pooled_blocks,
    )


def _asked(backbone: Chain) -> str:
    """The keys that say how wide and deep it is."""
    per_stage = backbone.blocks_per_stage
    more = f" backbone.blocks_per_stage={per_stage}" if per_stage > 1 else ""
    return f"backbone.channels={backbone.channels}{more}"


def _sparsity(config: Config) -> Iterator[str]:
    """A block keeps `min_channels`, in multiples of `round_to`: there must be wider ones."""
    sparsity, evolution, backbone = config.sparsity, config.evolution, config.backbone
    if not sparsity.enabled or not isinstance(backbone, Chain) or not backbone.channels:
        return
    channels = backbone.channels
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
    if backbone.in_channels != dataset.channels:
        yield (
            f"backbone.in_channels={backbone.in_channels}: the images have dataset.channels="
            f"{dataset.channels}; set one of them to the other, or leave backbone.in_channels out."
        )
    if backbone.imports is not None and not backbone.takes_imports and config.task != "search":
        taking = [n for n, cls in options_of(BackboneConfig).items() if cls.takes_imports]
        yield (
            f"backbone.imports={backbone.imports}: it has no effect with backbone={backbone.name}; "
            f"choose backbone={' or '.join(taking)} or leave it out."
        )
    if config.task == "pipeline":
        yield from _mutated(config)
    yield from backbone.unfit(dataset.image_size)


def _mutated(config: Config) -> Iterator[str]:
    """What evolution and sparsity can do to the backbone."""
    backbone, evolution = config.backbone, config.evolution
    parts = [part for part in ("evolution", "sparsity") if getattr(config, part).enabled]
    if not backbone.evolves:
        if parts:
            missing = " ".join(f"{part}=none" for part in parts)
            yield f"backbone={backbone.name}: it does not evolve and is not pruned; add {missing}."
        return
    if backbone.grows or not evolution.enabled:
        return
    can = f"there is no rule for more blocks in backbone={backbone.name}, only for its widths"
    if isinstance(evolution, Planned):
        yield f"evolution.order={evolution.order}: {can}; add evolution=sseg, or evolution=none."
    elif set(evolution.operators) == {"grow"}:
        yield (
            f"evolution.operators={evolution.operators}: {can}; set evolution.operators=[widen], "
            "or add evolution=none."
        )


def _ssl(config: Config) -> Iterator[str]:
    ssl, backbone = config.ssl, config.backbone
    usual = usual_of("ssl", ssl.name)
    for key in ("feature_weight", "feature_temperature"):
        value = getattr(ssl, key)
        if ssl.teacher is None and value != usual.get(key, value):
            yield (
                f"ssl.{key}={value}: it has no effect without ssl.teacher=RUN; add "
                "that, or leave it out."
            )
    if ssl.teacher is not None:
        why = None if ssl.trains else "trains nothing"
        why = "does not pretrain" if config.finetune.start else why
        if why is not None:
            given = f"finetune.from={config.finetune.start}" if ssl.trains else "ssl=none"
            yield f"ssl.teacher={ssl.teacher}: {given} {why}, so it has no effect; leave it out."
        if not ssl.feature_weight:
            yield (
                f"ssl.feature_weight=0: nothing is learned from ssl.teacher={ssl.teacher}; raise "
                "it, or leave ssl.teacher out."
            )
    if isinstance(ssl, DINO) and ssl.local_views and ssl.local_size != 1 and backbone.one_size:
        other = " or backbone.embedding=average" if isinstance(backbone, Chain) else ""
        yield (
            f"ssl.local_size={ssl.local_size}: backbone={backbone.name} embeds images of one size "
            f"only; set ssl.local_size=1{other}."
        )


def _pretrain(config: Config) -> Iterator[str]:
    schedule = config.pretrain.image_sizes
    if schedule is None:
        return
    key = f"pretrain.image_sizes={_written(schedule)}"
    said = list(_sizes(key, schedule, config))
    yield from said
    if said:
        return
    if config.ssl.name == "none":
        yield f"{key}: it has no effect with ssl=none, which trains nothing; leave it out."
    size, last = config.dataset.image_size, sizes_of(schedule)[-1][0]
    if last != size:
        yield (
            f"{key}: the last size must be dataset.image_size={size}, at which the network is "
            "evaluated with the BN statistics that it then has."
        )
    if config.evolution.enabled and isinstance(config.evolution, Trials):
        yield (
            f"{key}: evolution.order=trials waits for a loss that stays as it is, and losses of "
            "other sizes do not compare; add evolution=balanced, or evolution=none."
        )


def _sizes(key: str, schedule: Sequence[str], config: Config) -> Iterator[str]:
    """A schedule of image sizes, at which the backbone can be trained."""
    try:
        sizes = [size for size, _ in sizes_of(schedule)]
    except ValueError as error:
        yield f"{key}: {error}."
        return
    least, most = 8, config.dataset.image_size
    for size in sizes:
        if not least <= size <= most:
            yield f"{key}: sizes are {least} to dataset.image_size={most}, that of the images."
            return
    if config.backbone.one_size:
        other = " or set backbone.embedding=average" * isinstance(config.backbone, Chain)
        yield (
            f"{key}: backbone={config.backbone.name} embeds images of one size only; leave it "
            f"out{other}."
        )


def _written(values: Sequence[str]) -> str:
    return f"[{','.join(values)}]"


def _untrained(config: Config) -> Iterator[str]:
    parts = [part for part in ("evolution", "sparsity") if getattr(config, part).enabled]
    tuned = any(stage.finetune.evolve for stage in stages_of(config))
    if not config.ssl.trains and parts and not tuned:
        missing = " ".join(f"{part}=none" for part in parts)
        yield (
            f"ssl=none: nothing is trained, so add {missing}, or choose ablation=A1. Under labels "
            "they work with finetune=linear finetune.evolve=true."
        )


def _method(config: Config) -> Iterator[str]:
    """The few-shot method, and what one of another package takes."""
    evaluation, known = config.evaluation, options_of(MethodConfig)
    if evaluation.method not in known:
        yield _not_one_of("evaluation.method", evaluation.method, tuple(known))
        return
    kind, settings = known[evaluation.method], evaluation.settings
    section = isinstance(getattr(evaluation, evaluation.method, None), MethodConfig)
    own = {} if section else {name: said for name, *said in fields_of(kind)}
    said = []
    for key, value in settings.items():
        name = f"evaluation.settings.{key}"
        if key not in own:
            has = f"it has {', '.join(own)}" if own else "it has none there"
            said.append(
                f"{name}={shown(value)}: evaluation.method={evaluation.method} takes no such "
                f"setting; {has}."
            )
        elif not fits(own[key][0], value):
            said.append(f"{name}={shown(value)}: {described(own[key][0])} is needed.")
        else:
            for each in value if isinstance(value, list) else [value]:
                said += _refused(name, each, own[key][1])
    said += [
        f"evaluation.settings.{key}: evaluation.method={evaluation.method} needs a value."
        for key in own
        if key not in settings
    ]
    yield from said or (kind(**settings).wrong() if own else ())


def _evaluation(config: Config) -> Iterator[str]:
    evaluation = config.evaluation
    kind = option_of(MethodConfig, evaluation.method)
    if evaluation.shots is not None:
        yield from _a_set("evaluation.shots", evaluation.shots)
    yield from _a_set("evaluation.datasets", evaluation.datasets)
    known = options_of(DatasetConfig)
    for name in evaluation.datasets:
        if name not in known:
            yield _not_one_of("evaluation.datasets", name, tuple(known))
        elif issubclass(known[name], OwnImages) and name != config.dataset.name:
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
        if kind.adapts:
            yield (
                f"{views}: it averages embeddings, and evaluation.method={evaluation.method} "
                "adapts to the images; leave it out."
            )
        if evaluation.support_augmentations:
            yield (
                f"{views}: not together with evaluation.support_augmentations="
                f"{evaluation.support_augmentations}, which has other views of the support alone; "
                "leave one of them out."
            )
    if kind.transductive and evaluation.queries == 1:
        yield (
            f"evaluation.queries=1: evaluation.method={evaluation.method} classifies all queries "
            "together and needs several; set evaluation.queries to 2 or more, or choose an "
            "inductive method, such as evaluation.method=prototype."
        )


def _closed(config: Config) -> Iterator[str]:
    """Closed sets are evaluated as such, and no others are."""
    evaluation, dataset = config.evaluation, config.dataset.name
    closed, ways = names_with(Closed), " or ".join(f"evaluation={name}" for name in CLOSED_SETS)
    same = is_closed(config.dataset)
    chosen = f"evaluation={evaluation.name}"
    if same and evaluation.name == EPISODES:
        yield (
            f"{chosen}: the classes of dataset={dataset} are the same in train, val and test, so "
            f"no episode is of new ones; choose {ways}."
        )
    if not same and evaluation.name != EPISODES:
        yield (
            f"{chosen}: val and test of dataset={dataset} have other classes than train; choose "
            f"one of {', '.join(closed)}, of images of your own dataset.split_by=images, or "
            "evaluation=fewshot."
        )
    others = [name for name in evaluation.datasets if name != dataset]
    if others and (same or set(others) & set(closed)):
        yield (
            f"evaluation.datasets={evaluation.datasets}: a closed set is evaluated alone, after "
            f"training on it; leave it out."
        )
    if evaluation.name == PROBE:
        given = evaluation.linear_probe.regularization
        yield from _a_set(f"evaluation.{PROBE}.regularization", given)
    methods = [stage.finetune for stage in stages_of(config)]
    for method in methods:
        if same and not isinstance(method, Classifier):
            yield (
                f"finetune={method.name}: it is chosen by episodes of classes that are not trained "
                f"on, and dataset={dataset} has none; choose finetune=classifier or finetune=none."
            )
        if not same and isinstance(method, Classifier):
            yield (
                f"finetune=classifier: val and test of dataset={dataset} have other classes than "
                "train; choose finetune=linear, whose embedding is evaluated."
            )
    kept = bool(methods) and isinstance(methods[-1], Classifier)
    if config.task == "pipeline" and evaluation.name == CLASSIFIER and not kept:
        yield (
            f"{chosen}: it needs what finetune=classifier trains; add that, or choose "
            "evaluation=knn or evaluation=linear_probe."
        )


def _finetune(config: Config) -> Iterator[str]:
    options, evaluation = config.finetune, config.evaluation
    method = evaluation.method
    kind = option_of(MethodConfig, method)
    if kind.headed and config.task == "pipeline" and options.name != method:
        yield (
            f"evaluation.method={method}: it needs what finetune={method} trains; add that, or "
            "choose another evaluation.method."
        )
    if kind.headed and evaluation.normalize != "none":
        yield (
            f"evaluation.normalize={evaluation.normalize}: evaluation.method={method} "
            "was trained on features as they are; set evaluation.normalize=none."
        )
    if kind.adapts and evaluation.support_augmentations:
        yield (
            f"evaluation.support_augmentations={evaluation.support_augmentations}: it averages "
            f"embeddings, and evaluation.method={method} adapts to the images; leave it out."
        )
    yield from _teacher(config)
    if not options.trains:
        if options.start:
            yield (
                f"finetune.from={options.start}: it has no effect with finetune=none; choose how "
                f"to fine-tune: {', '.join(f'finetune={name}' for name in trained())}."
            )
        return
    yield from _of_stages(config, _stage)
    if config.hardware.compile and not config.ssl.trains:
        yield "hardware.compile=true: it has no effect on fine-tuning; leave it out."


def _teacher(config: Config) -> Iterator[str]:
    """The teacher of finetune=linear, and what is only for one."""
    given = config.finetune.teacher
    stages = stages_of(config)
    linear = [(s, s.finetune) for s in stages if isinstance(s.finetune, Linear)]
    if given and not linear:
        yield (
            f"finetune.teacher={given}: it has no effect with finetune={config.finetune.name}; "
            "choose finetune=linear, whose classifier is distilled, or leave it out."
        )
    for stage, options in linear:
        begins, usual = in_words(stage, config), usual_of("finetune", options.name)
        for key in DISTILLING:
            if not given and getattr(options, key) != usual.get(key, getattr(options, key)):
                yield (
                    f"{begins}.{key}={getattr(options, key)}: it has no effect without "
                    "finetune.teacher=RUN; add that, or leave it out."
                )
        if given and not (options.distillation_weight or options.feature_weight):
            yield (
                f"{begins}.distillation_weight=0: with {begins}.feature_weight=0 nothing is "
                f"learned from finetune.teacher={given}; raise one of them, or leave it out."
            )


def _stage(config: Config) -> Iterator[str]:
    """One stage of fine-tuning."""
    options, evaluation = config.finetune, config.evaluation
    if options.evolve:
        yield from _evolving(config)
    if isinstance(options, Matching | Relation):
        yield from _head(config, options)
    if options.image_sizes is not None:
        key = f"finetune.image_sizes={_written(options.image_sizes)}"
        yield from _sizes(key, options.image_sizes, config)
        if options.freeze != "none" or options.frozen_blocks or options.freeze_norms:
            yield (
                f"{key}: what is frozen keeps the BN statistics of the size that it was trained "
                "at; leave it out, or what freezes."
            )
    given = None not in (options.ways, evaluation.ways)
    if isinstance(options, Maml) and given and options.ways != evaluation.ways:
        yield (
            f"finetune.ways={options.ways}: the head of finetune=maml has as many classes as the "
            f"episodes of the evaluation; set evaluation.ways={options.ways} or finetune.ways="
            f"{evaluation.ways}."
        )
    if config.hardware.compile and not config.ssl.trains:
        value = str(config.hardware.compile).lower()
        yield f"hardware.compile={value}: it has no effect on fine-tuning; leave it out."


def _head(config: Config, options: Matching | Relation) -> Iterator[str]:
    """Check the learned head of finetune=matching or relation."""
    evaluation = config.evaluation
    usual, mlp = usual_of("finetune", options.name), options.head == "mlp"
    idle = {"scale": "finetune.head=cosine"} if mlp else {"head_width": "finetune.head=mlp"}
    for key, needed in idle.items():
        value = getattr(options, key, None)
        if value != usual.get(key, value):
            yield (
                f"finetune.{key}={value}: it has no effect without {needed}; add "
                "that, or leave it out."
            )
    learned = mlp and isinstance(options, Matching) and evaluation.method == options.evaluated_by
    if learned and evaluation.normalize != "none":
        yield (
            f"evaluation.normalize={evaluation.normalize}: finetune.head=mlp is trained on "
            "features as they are; set evaluation.normalize=none."
        )


def _evolving(config: Config) -> Iterator[str]:
    """Evolution and pruning while fine-tuning."""
    options, evolution, sparsity = config.finetune, config.evolution, config.sparsity
    said = f"finetune.evolve=true: it is not possible with finetune={options.name}"
    if not options.grows:
        yield f"{said}, whose inner steps are those of one network; choose another method."
    if not (evolution.enabled or sparsity.enabled):
        yield "finetune.evolve=true: nothing changes the network; add evolution=balanced."
    if evolution.enabled and isinstance(evolution, Trials):
        yield (
            "finetune.evolve=true: evolution.order=trials compares networks on images that are not "
            "trained on, and the base split has none of these with labels; add evolution=balanced, "
            "or evolution=none."
        )
    if sparsity.enabled and sparsity.rollback_grace_epochs:
        yield (
            "finetune.evolve=true: sparsity.rollback_grace_epochs="
            f"{sparsity.rollback_grace_epochs} is for pretraining, under labels a pruning is "
            "accepted or rolled back at once: add sparsity.rollback_grace_epochs=0, or "
            "sparsity=none."
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


def _options(config: Config) -> Iterator[str]:
    """What the option of each group says of its own values."""
    for name, kind, _ in fields_of(Config):
        if kind is FinetuneConfig:
            yield from _of_stages(config, lambda stage: stage.finetune.wrong())
        elif is_group(kind):
            yield from getattr(config, name).wrong()


def _tracking(config: Config) -> Iterator[str]:
    if config.task == "deliver" and not isinstance(config.tracking, InStore):
        yield (
            f"tracking={config.tracking.name}: nothing can be delivered there; leave it out for "
            "the store that the run has, or choose tracking=mlflow or tracking=server with "
            "tracking.uri=ADDRESS."
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
        _page,
        _names,
        _curriculum,
        _views,
        _backbone,
        _architecture,
        _sparsity,
        _ssl,
        _pretrain,
        _untrained,
        _method,
        _evaluation,
        _closed,
        _finetune,
        _options,
        _tracking,
    ),
)
