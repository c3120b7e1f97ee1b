"""What a run's network is and what trained it, told from what the run wrote.

A run that evaluated a checkpoint, or fine-tuned another run's network, is followed back to the run
that trained it, as long as that run's folder is where it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sseg_nase.config.ablations import Switches, ablations, switches_of
from sseg_nase.config.conf_files import group_option
from sseg_nase.config.groups.evaluation import PROTOTYPE, MethodConfig
from sseg_nase.config.groups.finetune import FinetuneConfig, Linear
from sseg_nase.config.groups.ssl import SimCLR, SSLConfig
from sseg_nase.config.options import option_of, title_of
from sseg_nase.errors import UserError
from sseg_nase.finite import finite
from sseg_nase.rundir.architecture import read_architecture
from sseg_nase.rundir.config import config_of
from sseg_nase.rundir.results import section
from sseg_nase.rundir.unreadable import UnreadableError

NOTHING, SYNTHETIC, CENTRED, UNLABELED, LABELS, OUTSIDE, UNKNOWN = (
    "nothing", "synthetic", "centred", "unlabeled", "labels", "outside", "unknown",
)  # fmt: skip
# What a network has learned from, in the order in which tables show it.
REGIMES: Mapping[str, str] = {
    NOTHING: "nothing trained",
    SYNTHETIC: "synthetic only",
    CENTRED: "synthetic, centred on the mean of real base images",
    UNLABELED: "unlabeled base",
    LABELS: "base labels",
    OUTSIDE: "weights from outside",
    UNKNOWN: "images not recorded",
}
TEACHERS = ("teacher", "ssl_teacher")  # sections of results.json

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class Provenance:
    """What `provenance` tells of a network.

    `evaluated_as_trained`: the evaluation.method that goes without saying. `backbone`: its name in
    conf/; `shown`: with the channels of its blocks, where they are not those there. `regime`: a key
    of `REGIMES`. `datasets`: of the real images that it was trained on.
    """

    method: str
    evaluated_as_trained: str | None
    backbone: str
    shown: str
    channels: tuple[int, ...]
    regime: str
    datasets: tuple[str, ...]

    def evaluated_by(self, method: str, dataset: str) -> str:
        """The method's name with what does not go without saying.

        That is: `method` (of results.json) where it was not trained for that, what was done to the
        episodes, and the dataset of its training where that is not `dataset`.
        """
        kind, *protocol = method.split("/")
        name = self.method
        if kind != self.evaluated_as_trained:
            name += f" + {title_of(MethodConfig, kind)}"
        if any(part.endswith("views") for part in protocol):
            name += ", augmented support"
        if any(part.startswith("dirichlet") for part in protocol):
            name += ", unbalanced queries"
        if self.datasets and self.datasets != (dataset,):
            name += f", trained on {' and '.join(self.datasets)}"
        return name


def provenance(run: Path, results: Tree) -> Provenance:
    """What trained the network of `run`, and on which images, with its `results` (results.json)."""
    configs, unknown = lineage(run)
    weights = _at(configs[0], "backbone.weights") if configs else None
    method, own = _method(configs, unknown, weights)
    regime = OUTSIDE if weights else regime_of(_seen(results))
    if regime == SYNTHETIC and _centred(results):
        regime = CENTRED
    backbone, shown, channels = _backbone(run, configs, results)
    return Provenance(
        method=method,
        evaluated_as_trained=own,
        backbone=backbone,
        shown=shown,
        channels=channels,
        regime=regime,
        datasets=_datasets(configs) if regime in (UNLABELED, LABELS) else (),
    )


def regime_of(images_seen: Tree) -> str:
    """What the images were, by `images_seen` of results.json: the most that was known of any.

    Where real ones were among drawn ones, the network has seen real ones.
    """
    if not images_seen:
        return UNKNOWN
    sources = {"real_labeled": LABELS, "real_unlabeled": UNLABELED, "synthetic": SYNTHETIC}
    return next((name for key, name in sources.items() if images_seen.get(key)), NOTHING)


def _seen(results: Tree) -> Tree:
    """Images by source that the network has seen, and those that a teacher of it has."""
    teachers = [section(section(results, name), "images_seen") for name in TEACHERS]
    known = section(results, "images_seen")
    if not known:
        return known
    return {key: known[key] or any(each.get(key) for each in teachers) for key in known}


def _centred(results: Tree) -> bool:
    """Whether features were evaluated with the mean of the base images taken off (CL2N)."""
    evaluated = (section(results, name) for name in ("fewshot", "fewshot_best"))
    protocols = (one.get("method") for each in evaluated for one in each.values())
    return any("cl2n" in str(protocol).split("/") for protocol in protocols)


def lineage(run: Path) -> tuple[list[Tree], str | None]:
    """The configs that led to the network of `run`, oldest first.

    With the file that the oldest began with, where the run that wrote it cannot be found.
    """
    configs: list[Tree] = []
    folder, seen = run, set[Path]()
    while folder.resolve() not in seen:
        seen.add(folder.resolve())
        config = config_of(folder)
        if config is None:
            break
        configs.insert(0, config)
        origin = _origin(config)
        if origin is None:
            return configs, None
        folder = origin if origin.is_dir() else origin.parent.parent
        if config_of(folder) is None:
            return configs, origin.name
    return configs, None


def _origin(config: Tree) -> Path | None:
    """The checkpoint, or the run's folder, whose network a run took over."""
    key = "checkpoint" if config.get("task") == "evaluate" else "finetune.start"
    named = _at(config, key)
    return Path(named).expanduser() if named else None


def _method(
    configs: Sequence[Tree], unknown: str | None, weights: str | None
) -> tuple[str, str | None]:
    """The name of what trained a network, and how a network trained so is evaluated."""
    steps: list[tuple[str, str | None]] = []
    if weights:
        steps.append((f"weights of {Path(weights).name}", None))
    if unknown is not None:
        steps.append((f"network of {unknown}", None))
    for config in configs:
        if config.get("task") == "evaluate":
            continue
        if _pretrains(config):
            steps.append(_pretraining(config))
        for name in _at(config, "finetune.sequence") or [_at(config, "finetune.name", "none")]:
            if name == "none":
                continue
            tuned = option_of(FinetuneConfig, name)
            distilled = issubclass(tuned, Linear) and _at(config, "finetune.teacher")
            called = f"{'distilled ' if distilled else ''}{title_of(FinetuneConfig, name)}"
            steps.append((called, tuned.evaluated_by))
    if not steps:
        named = _ablation_of(configs[0]) if configs else None
        tag = f" ({configs[0]['ablation']})" if named is not None and not any(named) else ""
        steps.append((f"untrained{tag}", PROTOTYPE))
    if steps[-1][0].endswith(Linear.title):
        steps[-1] = (steps[-1][0], None)
    return ", then ".join(name for name, _ in steps), steps[-1][1]


def _pretrains(config: Tree) -> bool:
    trained = _at(config, "ssl.name", "none") != "none" and _at(config, "pretrain.epochs", 0) > 0
    return bool(trained and _at(config, "finetune.start") is None)


def _pretraining(config: Tree) -> tuple[str, str | None]:
    """The name of a pretraining; with its ablation where it is as that is defined."""
    given = switches_of(config)
    ssl = _at(config, "ssl.name")
    objective = title_of(SSLConfig, ssl)
    changing = {(True, True): "SSEG-NASE", (True, False): "SSEG", (False, True): "NASE"}
    name = changing.get((given.evolution, given.sparsity))
    own = PROTOTYPE if name else None
    if name is None:
        name = f"{objective} with distillation" if given.distillation else objective
    elif option_of(SSLConfig, ssl) is not SimCLR:
        name = f"{name} with {objective}"
    ablation = config.get("ablation")
    meant = _ablation_of(config)
    if meant is not None and _at(config, "curriculum.levels") == ["NATURAL"]:
        meant = meant._replace(progression=given.progression)  # one level has no order
    return (f"{name} ({ablation})" if meant == given else name), own


def _ablation_of(config: Tree) -> Switches | None:
    """What the ablation that a config names is defined as; None where it names none in conf/."""
    known = ablations().get(str(config.get("ablation")))
    return None if known is None else known.switches


def _backbone(
    run: Path, configs: Sequence[Tree], results: Tree
) -> tuple[str, str, tuple[int, ...]]:
    """The backbone's name in conf/, how it is shown, and the channels of its blocks."""
    told = section(results, "architecture").get("channels")
    channels = tuple(told) if isinstance(told, list) and all(map(finite, told)) else ()
    oldest = configs[0] if configs and _origin(configs[0]) is None else {}
    name = _at(oldest, "backbone.name")
    if name is None:
        name = _architecture(run).get("name", "evolvable")
    try:
        usual = group_option("backbone", name).get("channels")
    except UserError:  # of another version
        usual = None
    own = name == "evolvable" or (usual is not None and tuple(usual) != channels)
    shown = f"{name} ({'-'.join(map(str, channels))})" if own and channels else name
    return name, shown, channels


def _architecture(run: Path) -> Tree:
    try:
        return read_architecture(run)
    except UnreadableError:
        return {}


def _datasets(configs: Sequence[Tree]) -> tuple[str, ...]:
    """Of which the base images were seen."""
    found = [
        _at(config, "dataset.name")
        for config in configs
        if config.get("task") != "evaluate"
        and (
            _at(config, "finetune.name", "none") != "none"
            or (_pretrains(config) and "NATURAL" in _at(config, "curriculum.levels", ()))
        )
    ]
    return tuple(dict.fromkeys(name for name in found if name))


def _at(config: Tree, key: str, otherwise: Any = None) -> Any:
    """The value of a dotted key, `otherwise` where a run of before it was there has none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return otherwise if value is None else value
