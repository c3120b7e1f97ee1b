"""The record that every mutation leaves behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sseg_nase.kinds import kind_of
from sseg_nase.nets.description import Description


@dataclass(frozen=True)
class MutationRecord:
    """One line of `mutations.jsonl`. `seconds` wall time.

    Losses: mean contrastive part on the held batches (in older logs the whole loss on one batch).
    `fitness`: F(mutant) − F(unmutated network) after the trial (in older logs F(mutant)), with its
    error and those of the other candidates in the trigger; None where there was no trial.
    `function_delta`: relative change ‖f' − f‖ / ‖f‖ of the projections of the probe in eval mode.
    `measured`: what a PRUNE cost and gave, as `training.surgery` has it; None of others, and
    in older logs.
    """

    index: int
    epoch: int
    step: int
    kind: str
    target: dict[str, Any]
    trigger: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]
    function_delta: float | None
    loss_before: float | None
    loss_after: float | None
    fitness: float | None
    seconds: float
    accepted: bool
    measured: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MutationRecord:
        """Read back what `to_dict` wrote."""
        return cls(**data)


def counts(architecture: Description) -> dict[str, Any]:
    """The counts a record holds before and after."""
    summary = architecture.summary()
    return {key: summary[key] for key in ("blocks", "channels", "params", "macs")}


def accepted_kinds(history: Sequence[MutationRecord]) -> list[str]:
    """Kinds of the accepted growth steps, oldest first; what removes does not take turns."""
    return [r.kind for r in history if r.accepted and not kind_of(r.kind).removes]


def architecture_figures(
    architecture: Description, history: Sequence[MutationRecord]
) -> dict[str, float]:
    """What is logged of an architecture that is trained, `arch/*`; `history`: of its run."""
    removed, channels = removed_channels(history), architecture.channels
    width = sum(architecture.axes.values())
    return {
        "arch/params": architecture.params,
        "arch/macs": architecture.macs(),
        "arch/blocks": len(channels),
        "arch/width": max(channels),
        "arch/sparsity": removed / (width + removed) if width else 0.0,
    }


def removed_channels(history: Sequence[MutationRecord]) -> int:
    """How many channels were pruned for good."""
    return sum(kind_of(record.kind).removed(record.target) for record in history if record.accepted)
