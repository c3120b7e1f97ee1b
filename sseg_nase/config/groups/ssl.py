"""`ssl`: the self-supervised method. Its losses and heads are in `sseg_nase.ssl.methods`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Optional

from sseg_nase.config.options import Option, group, option, register


@group("ssl")
@dataclass(frozen=True)
class SSLConfig(Option):
    """What all methods have.

    `made_by`: of a method of another package, MODULE:NAME of the function that gives its
    `SSLMethod`, imported where it trains. `temperatures`: the keys whose value divides what a loss
    compares. `nats`: its loss is a cross-entropy.
    """

    temperature: Annotated[float, option(above=0)]
    distillation_weight: Annotated[float, option(least=0)]
    teacher: Annotated[Optional[str], option(path="the folder of a run, or a checkpoint,")]
    feature_weight: Annotated[float, option(least=0)]
    feature_temperature: Annotated[float, option(above=0)]
    ema_decay: Annotated[float, option(least=0, most=1)]
    ema_schedule: Annotated[str, option(choices=("constant", "cosine"))]
    trains: ClassVar[bool] = True
    made_by: ClassVar[str] = ""
    temperatures: ClassVar[tuple[str, ...]] = ()
    nats: ClassVar[bool] = False

    @property
    def own_statistics(self) -> bool:
        """Whether the teacher's BN has statistics of its own, and not the student's."""
        return True

    @property
    def held_epochs(self) -> int:
        """Epochs at the start in which the last layer stays as it was initialised."""
        return 0


@dataclass(frozen=True)
class Projected(SSLConfig):
    """Methods with a projection head of linear layers."""

    projection_hidden: Annotated[int, option(least=1)]
    projection_dim: Annotated[int, option(least=1)]
    projection_layers: Annotated[int, option(choices=(2, 3))]


@dataclass(frozen=True)
class _Taught(SSLConfig):
    """Methods whose teacher is there for the distillation alone."""

    teacher_statistics: Annotated[str, option(choices=("own", "student"))]

    @property
    def own_statistics(self) -> bool:
        return self.teacher_statistics == "own"


@register("ssl", "simclr")
@dataclass(frozen=True)
class SimCLR(Projected, _Taught):
    """SimCLR (Chen et al. 2020)."""

    title = "SimCLR"
    nats = True

    temperatures = ("temperature",)


@register("ssl", "none")
@dataclass(frozen=True)
class Untrained(Projected, _Taught):
    """No pretraining. It has SimCLR's keys, so that `ssl=none` fits any experiment with that."""

    trains = False


@register("ssl", "byol")
@dataclass(frozen=True)
class BYOL(Projected):
    """Bootstrap your own latent (Grill et al. 2020)."""

    title = "BYOL"


@register("ssl", "barlow_twins")
@dataclass(frozen=True)
class BarlowTwins(Projected, _Taught):
    """Barlow Twins (Zbontar et al. 2021)."""

    redundancy_weight: Annotated[float, option(least=0)]
    title = "Barlow Twins"


@register("ssl", "prototype_pairs")
@dataclass(frozen=True)
class PrototypePairs(_Taught):
    """Contrastive prototypes, without a projection head."""

    views: Annotated[int, option(least=2)]
    distance_temperature: Annotated[float, option(above=0)]
    title = "CPN without penalty"
    nats = True
    temperatures = ("distance_temperature",)


@register("ssl", "dino")
@dataclass(frozen=True)
class DINO(SSLConfig):
    """Self-distillation without labels (Caron et al. 2021)."""

    projection_hidden: Annotated[int, option(least=1)]
    projection_dim: Annotated[int, option(least=1)]
    prototypes: Annotated[int, option(least=2)]
    student_temperature: Annotated[float, option(above=0)]
    teacher_temperature: Annotated[list[float], option(above=0)]
    teacher_warmup_epochs: Annotated[int, option(least=0)]
    centre_momentum: Annotated[float, option(least=0, most=1)]
    freeze_last_layer_epochs: Annotated[int, option(least=0)]
    global_scale: Annotated[list[float], option(above=0, most=1)]
    local_views: Annotated[int, option(least=0)]
    local_scale: Annotated[list[float], option(above=0, most=1)]
    local_size: Annotated[float, option(above=0, most=1)]
    title = "DINO"
    nats = True
    temperatures = ("student_temperature",)

    @property
    def held_epochs(self) -> int:
        """Those of the prototypes."""
        return self.freeze_last_layer_epochs

    def wrong(self) -> Iterator[str]:
        """Pairs are two numbers, and ranges rise."""
        if len(self.teacher_temperature) != 2:
            yield (
                f"ssl.teacher_temperature={self.teacher_temperature}: two numbers are needed, "
                "[first, last]."
            )
        scales = {"global_scale": self.global_scale, "local_scale": self.local_scale}
        for key, scale in scales.items():
            if len(scale) != 2 or scale[0] > scale[1]:
                yield f"ssl.{key}={scale}: two numbers are needed, [low, high]."
