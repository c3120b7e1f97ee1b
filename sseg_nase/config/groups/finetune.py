"""`finetune`: how a network learns from labels. Trained in `sseg_nase.finetune`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Optional

from sseg_nase.config.groups.evaluation import MAML, MATCHING, PROTOTYPE, RELATION, RIDGE
from sseg_nase.config.groups.optimizer import of_tuning
from sseg_nase.config.groups.views import ViewsConfig
from sseg_nase.config.options import Option, group, option, register

METHODS = "sseg_nase.finetune.learner"
# By what it is told whether training still gets better, and whether more of it is better.
MONITORS = {"val_accuracy": True, "val_loss": False, "loss": False}


@group("finetune")
@dataclass(frozen=True)
class FinetuneConfig(Option):
    """What all methods have. Ways and shots that are `None` are fitted to the images.

    `sequence`: the methods that train one after the other, the last one being `name`; empty where
    it trains alone. `own`: the settings of each of them, by its name; see `config.sequence`, as of
    `start` and `teacher`, which are said once for all stages.

    `made_by`: MODULE:NAME of the function that gives its `Method`, imported where it trains.
    `evaluated_by`: the `evaluation.method` that classifies as it trains, on the episodes of val by
    which its best epoch is chosen. `by_episodes`: it sees episodes, not plain batches. `has_head`:
    it learns something beside the backbone. `grows`: the network may change while it trains.
    `nats`: its loss is a cross-entropy. `held_loss`: it is evaluated by a loss on val images, too.
    """

    sequence: list[str]
    own: dict[str, Any]
    start: Annotated[Optional[str], option(path="the folder of a run, or a checkpoint,")]
    teacher: Annotated[Optional[str], option(path="the folder of a run, or a checkpoint,")]
    ways: Annotated[Optional[int], option(least=2)]
    shots: Annotated[Optional[int], option(least=1)]
    epochs: Annotated[int, option(least=1)]
    patience: Annotated[Optional[int], option(least=1)]
    min_delta: Annotated[float, option(least=0)]
    monitor: Annotated[str, option(choices=tuple(MONITORS))]
    optimizer: Annotated[str, option(choices=of_tuning())]
    lr_encoder: Annotated[float, option(above=0)]
    lr_head: Annotated[float, option(above=0)]
    weight_decay: Annotated[float, option(least=0)]
    clip_norm: Annotated[Optional[float], option(above=0)]
    scheduler: Annotated[str, option(choices=("step", "cosine", "constant", "constant_decay"))]
    warmup_epochs: Annotated[float, option(least=0)]
    step_size: Annotated[int, option(least=1)]
    gamma: Annotated[float, option(above=0, most=1)]
    decay_share: Annotated[float, option(above=0, most=1)]
    evolve: bool
    gamma_lr_ratio: Annotated[float, option(above=0)]
    freeze: Annotated[str, option(choices=("none", "encoder"))]
    frozen_blocks: Annotated[int, option(least=0)]
    freeze_norms: bool
    ema_decay: Annotated[float, option(least=0, most=0.9999)]
    image_sizes: Annotated[Optional[list[str]], option(text="SIZE@SHARE, such as 24@0,")]
    validation_episodes: Annotated[int, option(least=2)]
    views: ViewsConfig
    trains: ClassVar[bool] = True
    made_by: ClassVar[str]
    evaluated_by: ClassVar[str] = PROTOTYPE
    by_episodes: ClassVar[bool] = True
    has_head: ClassVar[bool] = True
    grows: ClassVar[bool] = True
    nats: ClassVar[bool] = True
    held_loss: ClassVar[bool] = False

    def __init_subclass__(cls, **given: Any) -> None:
        """Take an option of another package that still says `judged_by`."""
        super().__init_subclass__(**given)
        if "judged_by" in vars(cls):
            warnings.warn(
                f"{cls.__module__}.{cls.__name__}.judged_by is called evaluated_by; the old name "
                "goes with the next minor version.",
                DeprecationWarning,
                stacklevel=2,
            )
            cls.evaluated_by = vars(cls)["judged_by"]

    def wrong(self) -> Iterator[str]:
        """What is frozen is there once, something is left to be trained, and what is watched is
        known."""
        if self.patience is None:
            usual = {"min_delta": 0, "monitor": "val_accuracy"}
            for key, value in usual.items():
                if getattr(self, key) != value:
                    yield (
                        f"finetune.{key}={getattr(self, key)}: it has no effect without "
                        "finetune.patience=EPOCHS; add that, or leave it out."
                    )
        elif self.monitor == "val_loss" and not self.held_loss:
            yield (
                f"finetune.monitor=val_loss: finetune={self.name} is evaluated on episodes, which "
                "have no loss of its kind; set val_accuracy or loss, or choose finetune=classifier."
            )
        if self.freeze == "encoder" and not self.has_head:
            yield (
                f"finetune.freeze=encoder: finetune={self.name} trains nothing else; leave it out, "
                "or set finetune.frozen_blocks."
            )
        if self.freeze == "encoder" and self.frozen_blocks:
            yield (
                f"finetune.frozen_blocks={self.frozen_blocks}: finetune.freeze=encoder freezes all "
                "blocks; leave one of them out."
            )


@dataclass(frozen=True)
class Episodic(FinetuneConfig):
    """Methods that learn from episodes. Queries that are `None` are fitted to the images."""

    queries: Annotated[Optional[int], option(least=1)]
    episodes_per_epoch: Annotated[int, option(least=1)]
    tasks_per_step: Annotated[int, option(least=1)]


@register("finetune", "prototypical")
@dataclass(frozen=True)
class Prototypical(Episodic):
    """Prototypical networks (Snell et al. 2017)."""

    metric: Annotated[str, option(choices=("cosine", "euclidean"))]
    scale: Annotated[float, option(above=0)]
    title = "ProtoNet"
    made_by = f"{METHODS}:prototypical"
    has_head = False


@register("finetune", "none")
@dataclass(frozen=True)
class NoFinetuning(Prototypical):
    """None. It has the keys of prototypical, so that `finetune=none` fits experiments with that."""

    trains = False


@register("finetune", MATCHING)
@dataclass(frozen=True)
class Matching(Episodic):
    """Matching networks (Vinyals et al. 2016)."""

    scale: Annotated[float, option(above=0)]
    head: Annotated[str, option(choices=("cosine", "mlp"))]
    head_width: Annotated[int, option(least=1)]
    title = "MatchingNet"
    made_by = f"{METHODS}:matching"
    evaluated_by = MATCHING
    has_head = False


@register("finetune", RELATION)
@dataclass(frozen=True)
class Relation(Episodic):
    """Relation networks (Sung et al. 2018)."""

    head: Annotated[str, option(choices=("maps", "mlp"))]
    head_width: Annotated[int, option(least=1)]
    title = "RelationNet"
    made_by = f"{METHODS}:relation"
    evaluated_by = RELATION
    nats = False


@register("finetune", "r2d2")
@dataclass(frozen=True)
class R2D2(Episodic):
    """Ridge regression on the support (Bertinetto et al. 2019)."""

    scale: Annotated[float, option(above=0)]
    title = "R2D2"
    made_by = f"{METHODS}:ridge"
    evaluated_by = RIDGE


@register("finetune", MAML)
@dataclass(frozen=True)
class Maml(Episodic):
    """MAML (Finn et al. 2017)."""

    inner_lr: Annotated[float, option(above=0)]
    inner_steps: Annotated[int, option(least=1)]
    first_order: bool
    title = "MAML"
    made_by = f"{METHODS}:maml"
    evaluated_by = MAML
    grows = False  # its inner steps are those of one network

    def wrong(self) -> Iterator[str]:
        """It adapts with the statistics of each batch."""
        yield from super().wrong()
        if self.freeze_norms:
            yield (
                "finetune.freeze_norms=true: finetune=maml adapts and is evaluated with the "
                "statistics of each batch; leave it out."
            )


@dataclass(frozen=True)
class Classifying(FinetuneConfig):
    """Classifiers of all base classes, which see plain batches and no episodes."""

    label_smoothing: Annotated[float, option(least=0, most=0.9)]
    mixup: Annotated[float, option(least=0)]
    cutmix: Annotated[float, option(least=0)]
    dropout: Annotated[float, option(least=0, most=0.9)]
    rotation: Annotated[float, option(least=0)]
    made_by = f"{METHODS}:linear"
    by_episodes = False

    def wrong(self) -> Iterator[str]:
        """Images are mixed in one way."""
        yield from super().wrong()
        if self.mixup and self.cutmix:
            yield (
                f"finetune.cutmix={self.cutmix:g}: finetune.mixup={self.mixup:g} mixes the images "
                "of a batch already; leave one of them out."
            )


@register("finetune", "linear")
@dataclass(frozen=True)
class Linear(Classifying):
    """A classifier that is then left out; with a teacher it learns from its classifier, too."""

    distillation_weight: Annotated[float, option(least=0, most=1)]
    distillation_temperature: Annotated[float, option(above=0)]
    feature_weight: Annotated[float, option(least=0)]
    title = "base classifier"


@register("finetune", "classifier")
@dataclass(frozen=True)
class Classifier(Classifying):
    """A classifier of a closed set, which is kept."""

    fraction: Annotated[float, option(above=0, most=1)]
    samples: Annotated[int, option(least=0)]
    title = "classifier"
    held_loss = True

    def wrong(self) -> Iterator[str]:
        """A part of the images is said in one way."""
        yield from super().wrong()
        if self.samples and self.fraction != 1:
            yield (
                f"finetune.samples={self.samples}: not together with finetune.fraction="
                f"{self.fraction:g}; leave one of them out."
            )


DISTILLING = tuple(name for name in Linear.__annotations__)  # only with a teacher
