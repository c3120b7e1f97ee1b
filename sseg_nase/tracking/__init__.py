"""Sinks: console, JSONL, MLflow. Everyone above knows only `Sink`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from sseg_nase.config.groups.tracking import InStore, OnlyFiles, OnServer, TrackingConfig
from sseg_nase.errors import UserError
from sseg_nase.files import StorageError
from sseg_nase.redaction import redacted
from sseg_nase.tracking.console import ConsoleSink
from sseg_nase.tracking.jsonl import JsonlSink
from sseg_nase.tracking.mlflow_sink import MlflowSink, is_server
from sseg_nase.tracking.sink import Dataset, Resumed, RunInfo, Sink, Tracker
from sseg_nase.tracking.system import SystemMetrics

__all__ = ["Dataset", "Resumed", "RunInfo", "Sink", "Tracker", "build_tracker"]


def build_tracker(tracking: TrackingConfig, console: bool = True) -> Tracker:
    """Return a tracker of console (if wanted), JSONL, and the store that `tracking.name` chooses.

    Raises `UserError` when `tracking.uri` does not fit `tracking.name`; whether a store answers
    shows when the tracker is opened.
    """
    local: list[Sink] = [ConsoleSink()] if console else []
    local.append(JsonlSink())
    return Tracker([*local, *STORES[type(tracking)](tracking, Tracker(local))])


def _mlflow(tracking: InStore, local: Sink) -> list[Sink]:
    def notify(kind: str, text: str) -> None:
        try:
            local.event(kind, {"text": text})
        except StorageError:  # on the delivering thread, whose work goes on: the run meets it, too
            print(f"sseg-nase: {redacted(text)}", file=sys.stderr, flush=True)

    store = MlflowSink(tracking.uri, tracking.experiment, required=tracking.required, notify=notify)
    if not tracking.system_metrics:
        return [store]
    return [store, SystemMetrics(Tracker([local, store]).metrics)]


def _server(tracking: OnServer, local: Sink) -> list[Sink]:
    if not is_server(tracking.uri):
        raise UserError(
            f"tracking.uri={redacted(tracking.uri)}: tracking=server needs the address of an "
            "MLflow server, such as tracking.uri=http://127.0.0.1:5000. "
            "For a database file choose tracking=mlflow."
        )
    return _mlflow(tracking, local)


def _jsonl(tracking: TrackingConfig, local: Sink) -> list[Sink]:
    return []


STORES: dict[type[TrackingConfig], Callable[[Any, Sink], list[Sink]]] = {
    InStore: _mlflow,
    OnServer: _server,
    OnlyFiles: _jsonl,
}
