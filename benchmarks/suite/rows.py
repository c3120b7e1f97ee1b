"""Every row of the benchmark: what of ours stands against what, and what must come out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

SIZES = (32, 84)
EPISODES, MANY_EPISODES = 600, 10_000
OWN = "sseg-nase"


@dataclass(frozen=True)
class Side:
    """`function` prepares and returns the work of a round.

    It is named `module.name` in `benchmarks.suite`, or in full if it is elsewhere. The work returns
    how much it did, in the row's unit (see `runner.UNITS`).
    """

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One comparison. `package` (on PyPI) is what `theirs` comes from and `module` what it imports.

    `ratio` is the least that must come out; `limit` what ours must reach, or, where less is better,
    must not exceed. `rounds` overrules the command line where more of them would tell no more.
    """

    name: str
    unit: str
    peer: str
    ours: Side
    theirs: Side
    package: str = OWN
    module: str = "sseg_nase"
    ratio: float | None = None
    limit: float | None = None
    rounds: int | None = None

    @property
    def installed(self) -> bool:
        """Whether the peer can be imported here."""
        return find_spec(self.module) is not None

    @property
    def peer_version(self) -> str:
        """Name and version of what the peer comes from."""
        try:
            return f"{self.package} {version(self.package)}"
        except PackageNotFoundError:  # run from a source tree that is not installed
            return self.package


def all_rows() -> list[Row]:
    """Every row, in the order of the table."""
    topics = (
        _views,
        _pretraining,
        _accumulation,
        _evaluation,
        _rendering,
        _startup,
        _pruning,
        _logging,
    )
    return [row for topic in topics for row in topic()]


def _views() -> Iterator[Row]:
    peers = {
        "lightly": ("lightly", "SimCLRTransform, a DataLoader worker per core", {32: 8.0, 84: 5.0}),
        "kornia": ("kornia", "batched augmentation", {32: 2.0, 84: 2.0}),
        "torchvision": ("torchvision", "transforms, one image at a time", {}),
    }
    for size in SIZES:
        for package, (module, peer, ratios) in peers.items():
            yield Row(
                f"views/{size}px/{package}",
                "images/s",
                peer,
                Side("views.ours", {"size": size}),
                Side(f"views.{package}", {"size": size}),
                package=package,
                module=module,
                ratio=ratios.get(size),
            )


def _pretraining() -> Iterator[Row]:
    for size, ratio in zip(SIZES, (3.0, 2.0), strict=True):
        ours = Side("pretraining.ours", {"size": size})
        yield Row(
            f"pretrain/{size}px/lightly",
            "images/s",
            "lightly's transform and loss, DataLoader workers, float32",
            ours,
            Side("pretraining.lightly", {"size": size}),
            package="lightly",
            module="lightly",
            ratio=ratio,
        )
        yield Row(
            f"pretrain/{size}px/ready-made-views",
            "images/s",
            "the same step without feeding and without making views",
            ours,
            Side("pretraining.ready_made", {"size": size}),
            ratio=0.85,
        )
        for backbone, least in (("evolvable", 1.6), ("conv4", 1.4), ("resnet12_quarter", 1.4)):
            network = {"size": size, "backbone": backbone}
            yield Row(
                f"pretrain/{size}px/{backbone}/in-turn",
                "images/s",
                "the same step with batch norm, activation and pooling one after the other",
                Side("pretraining.step", network),
                Side("pretraining.step_in_turn", network),
                ratio=least,
            )
    network = {"size": 32, "backbone": "mobilenet_v3_small"}
    yield Row(
        "pretrain/32px/mobilenet_v3_small/in-turn",
        "images/s",
        "the same step with torch's operators alone",
        Side("pretraining.step", network),
        Side("pretraining.step_in_turn", network),
        ratio=1.2,
    )


def _accumulation() -> Iterator[Row]:
    """Exact accumulation may cost 40 % of a step: then GPU profiles have it."""
    for size in SIZES:
        for batch, parts in ((24, 4), (48, 3)):
            of = {"size": size, "batch": batch, "parts": parts}
            yield Row(
                f"accumulate/{size}px/{batch}x{parts}",
                "images/s",
                "plain accumulation, whose loss compares a part at a time",
                Side("pretraining.accumulated", {**of, "accumulate": "exact"}),
                Side("pretraining.accumulated", {**of, "accumulate": "plain"}),
                ratio=1 / 1.4,
            )


def _evaluation() -> Iterator[Row]:
    data = "cifar_fs" if class_folders() else "digits"

    def ours(episodes: int) -> Side:
        return Side("evaluation.ours", {"episodes": episodes})

    yield Row(
        f"evaluation/{data}/easyfsl",
        "episodes/s",
        "PrototypicalNetworks and evaluate, a DataLoader worker per core",
        ours(EPISODES),
        Side("evaluation.easyfsl", {"episodes": 30}),
        package="easyfsl",
        module="easyfsl",
        ratio=30.0,
    )
    yield Row(
        f"evaluation/{data}/{MANY_EPISODES}-episodes",
        "s",
        f"our own {EPISODES} episodes",
        ours(MANY_EPISODES),
        ours(EPISODES),
        ratio=1 / 1.3 if data == "cifar_fs" else None,  # digits has few images to embed
    )
    yield Row(
        "evaluation/features/one-at-a-time",
        "episodes/s",
        "the same episodes on the same features, one at a time",
        Side("evaluation.on_features", {"episodes": EPISODES}),
        Side("evaluation.one_at_a_time", {"episodes": EPISODES}),
    )


def _rendering() -> Iterator[Row]:
    for size, limit in zip(SIZES, (20_000, 3_000), strict=True):
        yield Row(
            f"curriculum/{size}px/one-at-a-time",
            "images/s",
            "the same code, image by image",
            Side("rendering.batched", {"size": size}),
            Side("rendering.one_at_a_time", {"size": size}),
            limit=limit,
        )


def _startup() -> Iterator[Row]:
    data = "cifar_fs" if class_folders() else "digits"
    yield Row(
        "startup/help",
        "s",
        "python -c 'import torch'",
        Side("startup.help"),
        Side("startup.import_torch"),
        package="torch",
        module="torch",
        limit=0.6,
    )
    yield Row(
        "startup/first-step",
        "s",
        "a script with lightly's transform, until its first step",
        Side("startup.first_step"),
        Side("startup.first_step_of_lightly"),
        package="lightly",
        module="lightly",
        limit=8.0,
    )
    yield Row(
        f"memory/84px/{data}",
        "MB",
        "pretraining alone, with lightly",
        Side("startup.whole_run", {"size": 84, "dataset": data}),
        Side("pretraining.lightly", {"size": 84}),
        package="lightly",
        module="lightly",
        limit=2560.0,
        rounds=1,
    )


def _pruning() -> Iterator[Row]:
    subjects = {
        "chain": ("", "the dense network 64-128-192-256"),
        "resnet12_quarter": ("resnet12_quarter/", "the network with all of its channels"),
        "resnet18": ("resnet18/", "torchvision's network with all of its channels"),
    }
    for network, (place, peer) in subjects.items():
        for batch in (1, 64):
            given = {"network": network, "batch": batch}
            yield Row(
                f"pruned/{place}32px/batch-{batch}",
                "images/s",
                peer,
                Side("pruning.pruned", given),
                Side("pruning.dense", given),
            )


def _logging() -> Iterator[Row]:
    yield Row(
        "logging/mlflow",
        "% of a step",
        "one mlflow.log_metric per figure",
        Side("logging_costs.sink"),
        Side("logging_costs.one_by_one"),
        package="mlflow",
        module="mlflow",
    )


def class_folders() -> Path | None:
    """CIFAR-FS's val split as one folder of images per class, where the user has it."""
    folder = Path(os.environ.get("SSEG_NASE_DATA", "data")).expanduser().absolute()
    val = folder / "cifar_fs" / "val"
    return val if val.is_dir() else None
