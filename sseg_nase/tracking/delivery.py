"""What MLflow has not got of a run that is over, sent from the run's directory."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sseg_nase.config.groups.tracking import InStore, TrackingConfig
from sseg_nase.rundir.events import read_events
from sseg_nase.rundir.names import CONFIG, EVENTS
from sseg_nase.rundir.status import status_of
from sseg_nase.rundir.unreadable import UnreadableError
from sseg_nase.tracking.mlflow_sink import (
    MLFLOW_STATUS,
    RUN_FILES,
    create_run,
    describe,
    find_run,
    open_known,
    open_store,
    reason,
    send_rows,
    shown,
    stored_steps,
    terminate,
)
from sseg_nase.tracking.models import log_model
from sseg_nase.tracking.rows import Rows, clean_key, damaged, recorded_rows
from sseg_nase.tracking.sink import Dataset, RunInfo

File = tuple[Path, str | None]


class Undelivered(Exception):  # noqa: N818 - not an error of ours
    """The store does not take what it is sent; it can be sent again later."""


@dataclass(frozen=True)
class Delivery:
    """What was missing in the MLflow run `run_id`, and has arrived; `gone` are files no more."""

    run_id: str
    created: bool
    rows: int
    files: int
    ended: bool
    gone: tuple[Path, ...]

    @property
    def anything(self) -> bool:
        """Whether there was anything to send."""
        return self.created or self.ended or self.rows > 0 or self.files > 0


@dataclass(frozen=True)
class _Record:
    """events.jsonl, but for its figures; times are in ms since 1970."""

    run: RunInfo
    files: tuple[File, ...]
    began: int
    ended: int


def send_missing(
    directory: Path,
    uri: str,
    experiment: str,
    *,
    run_id: str | None,
    status: str,
    error: str | None,
    parent_run_id: str | None = None,
) -> Delivery:
    """Send what the store at `uri` has not got of the run in `directory`, and end it there.

    The MLflow run is the one with `run_id`, else the one with this directory, else a new one.
    Figures and the run's begin and end have the times at which they were told. `parent_run_id` is
    for a run that was told of no parent. Raises `Undelivered` when the store fails; what it has
    taken by then is not sent again the next time.
    """
    record = _read(directory, parent_run_id)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what mlflow stands on is full of deprecations
            client, experiment_id = open_store(uri, experiment)
    except Exception as failure:
        raise _undelivered(uri, failure) from failure
    from mlflow.exceptions import MlflowException

    try:
        return _send(client, experiment_id, record, run_id, MLFLOW_STATUS[status], error)
    except (OSError, MlflowException) as failure:
        raise _undelivered(uri, failure) from failure


def attached(
    run: Path,
    files: Sequence[tuple[Path, str]],
    tracking: TrackingConfig,
    folder: Path,
    figures: Mapping[str, float] | None = None,
) -> str:
    """Hand files of `folder`, and figures, to a run's MLflow run; return what is to be said of it.

    Where that cannot be done it is said why.
    """
    said = status_of(run)
    uri, run_id = said.get("tracking_uri"), said.get("tracker_run_id")
    stay = f"the files stay in {folder}"
    if not isinstance(tracking, InStore):
        return f"not used (tracking=jsonl); {stay}"
    if not uri or not run_id:
        return f"this run has no MLflow run; {stay}"
    try:
        attach(str(uri), str(run_id), files, figures)
    except Undelivered as error:
        return f"{error} {stay[0].upper()}{stay[1:]}."
    return f"{len(files)} files attached to run {run_id} at {shown(str(uri))}"


def attach(
    uri: str,
    run_id: str,
    files: Iterable[tuple[Path, str]],
    figures: Mapping[str, float] | None = None,
) -> None:
    """Keep files, each in its folder of the artifacts, with a run that the store at `uri` has.

    And figures. Raises `Undelivered` where the store fails, or does not have the run.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what mlflow stands on is full of deprecations
            client = open_known(uri)
            for path, folder in files:
                client.log_artifact(run_id, str(path), folder)
            for key, value in (figures or {}).items():
                client.log_metric(run_id, clean_key(key), value)
    except Exception as failure:
        raise _undelivered(uri, failure) from failure


def _send(
    client: Any,
    experiment_id: str,
    record: _Record,
    run_id: str | None,
    status: str,
    error: str | None,
) -> Delivery:
    run = record.run
    found = find_run(client, experiment_id, run_id, run.directory)
    if found is None and run_id is not None:
        found = find_run(client, experiment_id, None, run.directory)
    if found is None:
        run_id = create_run(client, experiment_id, run, record.began)
        rows = Rows()
    else:
        run_id = found.info.run_id
        describe(client, found, run)
        rows = Rows(stored_steps(client, run_id))
    recorded = recorded_rows(run.directory, rows)
    sent = send_rows(client, run_id, itertools.chain.from_iterable(recorded))
    there = [file for file in record.files if file[0].is_file()]
    missing = list(_missing_files(client, run_id, there))
    for path, folder in missing:
        client.log_artifact(run_id, str(path), folder)
    of_model = log_model(client, run_id, run.directory)
    ended = found is None or found.info.status != status
    if ended:
        terminate(client, run_id, status, error, run.directory, record.ended)
    return Delivery(
        run_id=run_id,
        created=found is None,
        rows=sent,
        files=len(missing) + of_model,
        ended=ended,
        gone=tuple(path for path, _ in record.files if not path.is_file()),
    )


def _missing_files(client: Any, run_id: str, files: Iterable[File]) -> Iterator[File]:
    """Those that the store does not have, or not in this size."""
    stored: dict[str | None, dict[str, int | None]] = {}
    for path, folder in files:
        if folder not in stored:
            listed = client.list_artifacts(run_id, folder)
            stored[folder] = {file.path.rpartition("/")[2]: file.file_size for file in listed}
        if stored[folder].get(path.name, -1) not in (path.stat().st_size, None):
            yield path, folder


def _read(directory: Path, parent_run_id: str | None) -> _Record:
    try:
        return _read_whole(directory, parent_run_id)
    except UnreadableError as error:
        raise damaged(error) from error
    except (KeyError, TypeError) as error:
        why = f"of the run's begin or its files: {error!r}"
        raise damaged(UnreadableError(directory / EVENTS, why)) from error


def _read_whole(directory: Path, parent_run_id: str | None) -> _Record:
    opened: dict[str, Any] = {}
    files = dict.fromkeys((directory / name, None) for name in RUN_FILES)
    files = {file: None for file in files if file[0].is_file()}
    began = ended = 0.0
    for line in read_events(directory):
        kind, values, ended = line["kind"], line["values"], line["time"]
        began = began or ended
        if kind == "open":  # params keep their first value, as in the store
            opened = values | {"params": values["params"] | opened.get("params", {})}
        elif kind == "artifact":
            folder = values["folder"]
            files[(directory / values["path"], folder)] = None
    if not opened:
        raise UnreadableError(directory / EVENTS, "it does not say what run it is of")
    run = RunInfo(
        directory=directory,
        name=opened["name"],
        experiment=opened["experiment"],
        config_file=directory / CONFIG,
        total_epochs=opened["total_epochs"],
        params=opened["params"],
        tags=opened["tags"],
        parent_run_id=opened.get("parent_run_id") or parent_run_id,
        datasets=tuple(Dataset(**one) for one in opened.get("datasets", ())),
    )
    return _Record(run, tuple(files), round(1000 * began), round(1000 * ended))


def _undelivered(uri: str, error: Exception) -> Undelivered:
    return Undelivered(f"MLflow at {shown(uri)} does not take it: {reason(error)}")
