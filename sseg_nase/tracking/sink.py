"""Where a run tells what happens: the interface, and the one that tells it to several.

The training loop and the stages know `Sink` and nothing else of tracking. The kinds of events and
what their `values` hold (whatever is missing is left out of the display):

==========  ========================================================================================
stage       stage: pretrain | evaluate | ...; any further detail
epoch       epoch (from 0), level, loss, blocks, params, images_per_second; skipped (steps so far)
level       level (the new one), epoch, reason
mutation    one line of mutations.jsonl, whole, as the design's schema has it; measured (of PRUNE):
            latency (batch, before_ms, after_ms), accuracy (before, after, change, change_error in
            points, and removed where it was asked for: on held episodes without labels)
rollback    the line of a mutation that did not pass its probation, with `accepted` false
finetune    method, number (of its stage, from 0), of (stages); epoch (from 0), epochs, loss,
            accuracy, val_accuracy, val_ci95 (percent), best, images_per_second
skipped     what (pretraining | fine-tuning), skipped, steps, text: once, at the end of it
message     text
warning     text: shown loudly
==========  ========================================================================================

Other kinds are recorded in events.jsonl and shown nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sseg_nase.redaction import plainly, redacted
from sseg_nase.rundir.status import ENDS, FAILED, INTERRUPTED

Param = str | int | float | bool


@dataclass(frozen=True)
class Resumed:
    """The run was there before: `run_id` is the tracker's id of it, if it is known.

    It goes on after `step` optimizer steps and `mutations` mutations: what was told of later ones
    is logged again.
    """

    run_id: str | None
    step: int
    mutations: int


@dataclass(frozen=True)
class Dataset:
    """Images that a run works with: `name` such as digits/val, `digest` of pixels, labels, classes.

    `roles` says what for, such as `evaluate`; `images` how many there are.
    """

    name: str
    digest: str
    roles: str
    images: int


@dataclass(frozen=True)
class RunInfo:
    """What a sink is told about the run when it opens.

    `name` says what was overridden; `params` are short and flat (the whole config is
    `config_file`); `resumed` is None for a new run; `parent_run_id` is the tracker's id of the
    sweep that the run is one of.
    """

    directory: Path
    name: str
    experiment: str
    config_file: Path
    total_epochs: int
    params: dict[str, Param] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    resumed: Resumed | None = None
    parent_run_id: str | None = None
    datasets: tuple[Dataset, ...] = ()


class Sink:
    """Takes in what a run tells. Every method of this one does nothing: it is the null sink."""

    @property
    def run_id(self) -> str | None:
        """The id under which a tracking store knows the run; `None` where there is none."""
        return None

    @property
    def delivered(self) -> bool:
        """Whether everything told has arrived where it is kept; final only after `close`."""
        return True

    @property
    def page(self) -> str | None:
        """How a person looks at the run where it is kept; `None` where there is nothing to see."""
        return None

    def open(self, run: RunInfo) -> None:
        """Begin, before anything else is told."""

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record figures of one step. A name has one value per step: the first one told counts."""

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Record that something happened; the kinds stand at the top of this module."""

    def progress(self, epoch: int, step: int, steps: int, values: Mapping[str, Any]) -> None:
        """Show where the run is: `step` of `steps` done in `epoch` (from 0). Recorded nowhere.

        `values` may hold level, loss, blocks, params and images_per_second.
        """

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file with the run, in `folder` of its artifacts."""

    def hurry(self) -> None:
        """Wait only briefly, when closed, for what can be delivered later: a stop was requested."""

    def close(self, status: str, error: str | None = None) -> None:
        """End with FINISHED, FAILED or INTERRUPTED; what was told before is delivered first."""


class Tracker(Sink):
    """Tells everything to several sinks, in order, and closes them in the opposite order.

    So the last one (the slowest to deliver) can still tell the first ones about its troubles.
    No sink is given a password or a token: texts are `redacted` here.
    """

    def __init__(self, sinks: Iterable[Sink]) -> None:
        self.sinks: tuple[Sink, ...] = tuple(sinks)
        self._opened: list[Sink] = []

    @property
    def run_id(self) -> str | None:
        """The id that the first sink with one gives."""
        return next((sink.run_id for sink in self.sinks if sink.run_id is not None), None)

    @property
    def delivered(self) -> bool:
        """Whether every sink has delivered everything."""
        return all(sink.delivered for sink in self.sinks)

    @property
    def page(self) -> str | None:
        """What the first sink with a page says."""
        return next((sink.page for sink in self.sinks if sink.page is not None), None)

    def open(self, run: RunInfo) -> None:
        """Open all; if one raises, those before it are closed and the error is raised.

        They are closed as INTERRUPTED where it was a request to stop, else as FAILED.
        """
        run = replace(
            run, name=redacted(run.name), params=plainly(run.params), tags=plainly(run.tags)
        )
        try:
            for sink in self.sinks:
                sink.open(run)
                self._opened.append(sink)
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt)
            text = str(error) or ("interrupted" if stopped else type(error).__name__)
            try:
                self.close(INTERRUPTED if stopped else FAILED, redacted(text))
            except Exception as second:  # it must not hide the first
                error.__context__ = second
            raise

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Tell all."""
        for sink in self.sinks:
            sink.metrics(values, step)

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Tell all."""
        values = plainly(dict(values))
        for sink in self.sinks:
            sink.event(kind, values)

    def progress(self, epoch: int, step: int, steps: int, values: Mapping[str, Any]) -> None:
        """Tell all."""
        for sink in self.sinks:
            sink.progress(epoch, step, steps, values)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Tell all."""
        for sink in self.sinks:
            sink.artifact(path, folder)

    def hurry(self) -> None:
        """Tell all."""
        for sink in self.sinks:
            sink.hurry()

    def close(self, status: str, error: str | None = None) -> None:
        """Close every opened sink, once, even when one raises; the first error is raised last."""
        assert status in ENDS, status
        error = None if error is None else redacted(error)
        failure: BaseException | None = None
        while self._opened:
            try:
                self._opened.pop().close(status, error)
            except BaseException as caught:
                failure = failure or caught
        if failure is not None:
            raise failure
