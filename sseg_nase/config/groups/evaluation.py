"""`evaluation`: what a network is worth. Its few-shot methods are in `sseg_nase.fewshot.methods`.

A method is an option of the group `evaluation.method`. What those of this package take are sections
of `evaluation`, by their names; what a method from outside takes is in `evaluation.settings`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Optional

from sseg_nase.config.groups.dataset import SPLITS
from sseg_nase.config.options import Checked, group, option, register

METHODS = "sseg_nase.fewshot.methods"
PROTOTYPE = "prototype"  # how a network is evaluated that was trained for nothing else
# What fine-tuning trains for; where it has a method of the same name, its head is that of this one.
MATCHING, RIDGE, RELATION, MAML = "matching", "ridge", "relation", "maml"


@group("evaluation.method", told_by="method")
@dataclass(frozen=True)
class MethodConfig(Checked):
    """What all few-shot methods have.

    `made_by`: MODULE:NAME of the function that gives its `Method`, imported where networks are
    evaluated. `headed`: it has none, but needs what finetune of its name trains. `adapts`: to the
    images themselves, not to embeddings. `transductive`: it classifies the queries together.
    """

    made_by: ClassVar[str]
    headed: ClassVar[bool] = False
    adapts: ClassVar[bool] = False
    transductive: ClassVar[bool] = False


@register("evaluation.method", PROTOTYPE)
@dataclass(frozen=True)
class PrototypeConfig(MethodConfig):
    """The nearest mean of a class."""

    title = "nearest prototype"

    made_by = f"{METHODS}:prototype"


@register("evaluation.method", MATCHING)
@dataclass(frozen=True)
class MatchingConfig(MethodConfig):
    """Attention over the support."""

    temperature: Annotated[float, option(least=0.001)]
    title = "matching attention"
    made_by = f"{METHODS}:matching"


@register("evaluation.method", RIDGE)
@dataclass(frozen=True)
class RidgeConfig(MethodConfig):
    """Ridge regression on the support."""

    regularization: Annotated[float, option(least=1e-6)]
    title = "ridge regression"
    made_by = f"{METHODS}:ridge"


@register("evaluation.method", "logistic")
@dataclass(frozen=True)
class LogisticConfig(MethodConfig):
    """Logistic regression on the support."""

    regularization: Annotated[float, option(least=1e-6)]
    title = "logistic regression"
    made_by = f"{METHODS}:logistic"


@register("evaluation.method", "linear")
@dataclass(frozen=True)
class LinearConfig(MethodConfig):
    """A linear layer, trained on the support by SGD."""

    steps: Annotated[int, option(least=1)]
    lr: Annotated[float, option(above=0)]
    momentum: Annotated[float, option(least=0, most=0.999)]
    weight_decay: Annotated[float, option(least=0)]
    title = "linear fine-tuning"
    made_by = f"{METHODS}:linear"


@register("evaluation.method", "sinkhorn")
@dataclass(frozen=True)
class SinkhornConfig(MethodConfig):
    """Optimal transport of all queries together."""

    marginal: Annotated[str, option(choices=("auto", "uniform", "free"))]
    power: Annotated[float, option(above=0)]
    entropy: Annotated[float, option(least=0.01)]
    scalings: Annotated[int, option(least=1)]
    updates: Annotated[int, option(least=0)]
    update_rate: Annotated[float, option(above=0, most=1)]
    title = "optimal transport"
    transductive = True
    made_by = f"{METHODS}:sinkhorn"


@register("evaluation.method", RELATION)
@dataclass(frozen=True)
class RelationConfig(MethodConfig):
    """The relation module that fine-tuning has trained."""

    title = "relation scores"

    headed = True


@register("evaluation.method", MAML)
@dataclass(frozen=True)
class MamlConfig(MethodConfig):
    """The network that fine-tuning has trained, adapted to the support."""

    steps: Annotated[int, option(least=0)]
    lr: Annotated[float, option(above=0)]
    title = "MAML adaptation"
    headed = adapts = True


@dataclass(frozen=True)
class LinearProbeConfig:
    """Logistic regression on the embeddings of train: of these the one that does best on val."""

    regularization: Annotated[list[float], option(least=1e-6)]


@dataclass(frozen=True)
class KnnConfig:
    """The nearest images of train vote."""

    neighbours: Annotated[int, option(least=1)]
    temperature: Annotated[float, option(least=0.001)]


EPISODES = "fewshot"
# How closed sets are evaluated, by the names in `evaluation` and in keys of results.
CLASSIFIER, PROBE, NEIGHBOURS = "classification", "linear_probe", "knn"
CLOSED_SETS = {
    CLASSIFIER: "trained classifier",
    PROBE: "linear probe",
    NEIGHBOURS: "nearest neighbours",
}


@register("evaluation", EPISODES, *CLOSED_SETS)
@group("evaluation")
@dataclass(frozen=True)
class EvaluationConfig(Checked):
    """The sections are options of the methods of their names; the others have no effect.

    `name`: on episodes, or how a closed set is evaluated. Ways, shots and queries that are `None`
    are fitted to the images when the run starts.
    """

    name: str
    split: Annotated[str, option(choices=SPLITS)]
    ways: Annotated[Optional[int], option(least=2)]
    shots: Annotated[Optional[list[int]], option(least=1)]
    queries: Annotated[Optional[int], option(least=1)]
    query_balance: Annotated[str, option(choices=("balanced", "dirichlet"))]
    dirichlet_alpha: Annotated[float, option(least=0.1)]
    episodes: Annotated[int, option(least=2)]
    seed: int
    datasets: Annotated[list[str], option(text="the name of a data set")]
    method: Annotated[str, option(text="the name of a few-shot method")]
    metric: Annotated[str, option(choices=("cosine", "euclidean"))]
    normalize: Annotated[str, option(choices=("cl2n", "l2n", "none"))]
    support_augmentations: Annotated[int, option(least=0)]
    test_views: Annotated[int, option(least=1, most=12)]
    top_k: Annotated[list[int], option(least=2)]
    matching: MatchingConfig
    ridge: RidgeConfig
    logistic: LogisticConfig
    linear: LinearConfig
    sinkhorn: SinkhornConfig
    maml: MamlConfig
    linear_probe: LinearProbeConfig
    knn: KnnConfig
    settings: dict[str, Any]
    batch_size: Annotated[int, option(least=1)]
    memory_mb: Annotated[float, option(above=0)]
    untrained_reference: bool
