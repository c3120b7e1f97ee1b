"""`tracking`: where a run is recorded, beside its own files. Done by `sseg_nase.tracking`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Optional

from sseg_nase.config.options import Option, group, option, register


@group("tracking")
@dataclass(frozen=True)
class TrackingConfig(Option):
    """What all of them have."""

    off: ClassVar[str] = "jsonl"
    experiment: Annotated[str, option(text="the name of an experiment in MLflow")]
    required: bool
    interval_steps: Annotated[int, option(least=1)]


@register("tracking", "jsonl")
@dataclass(frozen=True)
class OnlyFiles(TrackingConfig):
    """Nowhere else."""


@register("tracking", "mlflow")
@dataclass(frozen=True)
class InStore(TrackingConfig):
    """In an MLflow store. `uri` None: what MLFLOW_TRACKING_URI says, or mlflow.db.

    With `model` it gets the final network as a model, with `checkpoints` these, too, and with
    `system_metrics` what the machine does. The plans of sweeps that older versions began have none.
    """

    uri: Annotated[Optional[str], option(text="the address of a store")]
    model: bool = True
    checkpoints: bool = False
    system_metrics: bool = False


@register("tracking", "server")
@dataclass(frozen=True)
class OnServer(InStore):
    """On an MLflow server."""

    uri: Annotated[
        str,
        option(
            text="the address of a store",
            question="where is it? Add tracking.uri=http://HOST:PORT.",
        ),
    ]
