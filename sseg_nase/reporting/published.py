"""Published accuracies, to stand beside what we measure: published.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

WAYS = 5  # of all that is published there


@dataclass(frozen=True)
class Published:
    """One method of one source on one dataset; `accuracy` in % by shots, 5-way, test classes.

    `ours`: its names in our own tables. `channels`: None for a network of one form only.
    """

    method: str
    ours: tuple[str, ...]
    backbone: str
    channels: tuple[int, ...] | None
    params: int | None
    dataset: str
    accuracy: Mapping[int, float]
    regime: str
    transductive: bool
    source: str

    @property
    def backbone_name(self) -> str:
        """The backbone with its channels."""
        if self.channels is None:
            return self.backbone
        return f"{self.backbone} ({'-'.join(map(str, self.channels))})"


@cache
def published() -> tuple[Published, ...]:
    """All of published.yaml, in its order."""
    text = Path(__file__).with_name("published.yaml").read_text(encoding="utf-8")
    return tuple(_entry(**entry) for entry in yaml.safe_load(text))


def corresponding(
    method: str,
    backbone: str,
    channels: Sequence[int],
    *,
    dataset: str,
    regime: str,
    transductive: bool,
) -> Published | None:
    """What is published of this very method, backbone, dataset and regime; None where nothing is.

    `backbone` is its name in conf/, `channels` those of its blocks.
    """
    about = (backbone, dataset, regime, transductive)
    for one in published():
        same = about == (one.backbone, one.dataset, one.regime, one.transductive)
        if same and method in one.ours and one.channels in (None, tuple(channels)):
            return one
    return None


def _entry(*, ours: list[str], channels: list[int] | None, **rest: object) -> Published:
    kept = None if channels is None else tuple(channels)
    return Published(ours=tuple(ours), channels=kept, **rest)  # type: ignore[arg-type]
