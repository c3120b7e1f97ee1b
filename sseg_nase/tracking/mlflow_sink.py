"""MLflow: one run per run, written off the training thread, never in the way of training.

Only this module imports mlflow, and only when a sink opens. It uses `MlflowClient` and none of
mlflow's global state, so several runs may live in one process.
"""

from __future__ import annotations

import http.client
import importlib
import itertools
import json
import logging
import os
import re
import shlex
import ssl
import threading
import time
import urllib.error
import urllib.request
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from sseg_nase.config.commands import command
from sseg_nase.config.groups.tracking import InStore, TrackingConfig
from sseg_nase.errors import UserError
from sseg_nase.files import FULL, free_bytes, in_bytes
from sseg_nase.home import expanded
from sseg_nase.provenance.git import origin
from sseg_nase.redaction import VARIABLES, redacted, use
from sseg_nase.rundir import names
from sseg_nase.rundir.events import has_events
from sseg_nase.rundir.status import FAILED, FINISHED, INTERRUPTED
from sseg_nase.tracking.database import StoreError, check_database
from sseg_nase.tracking.models import has_model, log_model
from sseg_nase.tracking.rows import (
    Row,
    Rows,
    clean_key,
    recorded_rows,
    result_tags,
)
from sseg_nase.tracking.sink import Param, RunInfo, Sink

SQLITE = "sqlite:///"
SERVERS = ("http", "https")
ADDRESS_VARIABLE = "MLFLOW_TRACKING_URI"
RUN_FILES = (
    names.CONFIG,
    names.OVERRIDES,
    names.DATA,
    names.ENVIRONMENT,
    names.ARCHITECTURE,
    names.MUTATIONS,
    names.EPISODES,
    names.CONFUSION,
    names.PER_CLASS,
    names.EMBEDDINGS,
    names.RESULTS,
)
MLFLOW_STATUS = {FINISHED: "FINISHED", FAILED: "FAILED", INTERRUPTED: "KILLED"}

# What MLflow takes in one call, and in one value.
METRICS_PER_CALL, PARAMS_PER_CALL, LONGEST_PARAM = 1000, 100, 499
# Not worth another try: what the store refuses, and a file that cannot be read or written.
GONE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")

DIRECTORY_TAG = "directory"
SECONDS_TO_ANSWER = 4.0
SECONDS_FOR_LOCK = 120.0
SECONDS_IN_A_HURRY = 4.0  # for what waits, when a stop was requested
UI_PORT = 5000  # of `mlflow ui`, unless told otherwise
LONGEST_PAUSE = 60.0
LONGEST_REASON = 300

Notify = Callable[[str, str], None]


class MlflowSink(Sink):
    """A run in an MLflow store: a SQLite file, or a server.

    `uri`: `None` for mlflow.db in the working directory, `sqlite:///FILE`, or a server's http(s)
    address; `required`: whether a store that cannot be opened is an error, or a warning and a run
    without MLflow. A store that stops answering later never stops the run: rows wait in memory and
    are sent when it answers again. Of more than `capacity` the oldest give way; they are sent from
    events.jsonl. `notify(kind, text)` takes the warnings and messages about that, also from the
    delivering thread.

    Raises `UserError` for an address of another kind, or on `open` as said.
    """

    def __init__(
        self,
        uri: str | None,
        experiment: str,
        *,
        required: bool,
        notify: Notify | None = None,
        flush_seconds: float = 5.0,
        close_seconds: float = 60.0,
        capacity: int = 100_000,
    ) -> None:
        self.uri = resolve_uri(uri)
        self._experiment = experiment
        self._required = required
        self._notify: Notify = notify or (lambda kind, text: None)
        self._flush_seconds = flush_seconds
        self._close_seconds = close_seconds
        self._capacity = capacity
        self._run_id: str | None = None
        self._experiment_id: str | None = None
        self._directory = Path()
        self._delivery: _Delivery | None = None
        self._delivered = True
        self._rows = Rows()

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; after a failed `open`, the one that was to be resumed."""
        return self._run_id

    @property
    def delivered(self) -> bool:
        """Whether the store has everything: not before the sink is closed."""
        return self._delivered

    @property
    def page(self) -> str | None:
        """The address of the run in MLflow, and what serves it; `None` where it was not usable."""
        if self._experiment_id is None or self._run_id is None:
            return None
        return page_of(self.uri, self._experiment_id, self._run_id)

    def open(self, run: RunInfo) -> None:
        """Create the run, or continue the resumed one, and start delivering.

        A resumed run first gets the figures that it told but that did not arrive: events.jsonl has
        them.

        Raises `UserError` when the store cannot be used and `required` is set.
        """
        self._run_id = None if run.resumed is None else run.resumed.run_id
        self._directory = run.directory
        self._delivered = False
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what mlflow stands on is full of deprecations
                client, experiment_id = open_store(self.uri, self._experiment)
                run_id, stored = self._begin(client, experiment_id, run)
        except Exception as error:
            if self._required:
                raise unusable(self.uri, error) from error
            self._notify(
                "warning",
                f"MLflow at {shown(self.uri)} cannot be used: {reason(error, self.uri)} The run "
                f"is made without it; {run.directory / names.EVENTS} keeps everything, and "
                f"{command(task='deliver', run=run.directory)} sends it afterwards.",
            )
            return
        self._run_id, self._experiment_id = run_id, experiment_id
        self._rows = Rows(stored)
        known = run.resumed is not None and has_events(run.directory)
        missing = recorded_rows(run.directory, self._rows, run.resumed) if known else iter(())
        self._delivery = _Delivery(
            client,
            run_id,
            name=shown(self.uri),
            events=run.directory / names.EVENTS,
            behind=_last_steps(itertools.chain.from_iterable(missing)),
            notify=self._notify,
            flush_seconds=self._flush_seconds,
            capacity=self._capacity,
        )
        self.artifact(run.config_file)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Queue the figures; a (name, step) that the run has already is left out."""
        if self._delivery is not None:
            self._delivery.add_rows(self._rows.metrics(values, step, _now()))

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Queue a mutation as `mutation/*` figures; other events are not MLflow's."""
        if self._delivery is not None and kind == "mutation":
            self._delivery.add_rows(self._rows.mutation(values, _now()))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Queue a file; it is copied as it is when its turn comes."""
        if self._delivery is not None:
            self._delivery.add_file(path, folder)

    def hurry(self) -> None:
        """Wait a few seconds only for what waits; `task=deliver`, or a resume, sends the rest."""
        self._close_seconds = min(self._close_seconds, SECONDS_IN_A_HURRY)

    def close(self, status: str, error: str | None = None) -> None:
        """Deliver what waits, with the run's config, architecture, mutations and results, and end.

        FINISHED and FAILED are MLflow's own words; INTERRUPTED is its KILLED.
        """
        if self._delivery is None:
            return
        for name in RUN_FILES:
            if (self._directory / name).is_file():
                self._delivery.add_file(self._directory / name, None)
        self._delivered = self._delivery.finish(MLFLOW_STATUS[status], error, self._close_seconds)
        self._delivery = None

    def _begin(
        self, client: Any, experiment_id: str, run: RunInfo
    ) -> tuple[str, dict[str, Iterable[int]]]:
        """Return the run's id, and the steps of every metric that the store has of it."""
        if run.resumed is not None:
            found = find_run(client, experiment_id, run.resumed.run_id, run.directory)
            if found is not None:
                known_id: str = found.info.run_id
                client.update_run(known_id, status="RUNNING")
                describe(client, found, run)
                return known_id, stored_steps(client, known_id)
            self._notify(
                "warning",
                f"MLflow at {shown(self.uri)} does not have the run that is resumed; "
                "a new one takes over from here.",
            )

        return create_run(client, experiment_id, run), {}


class _Delivery:
    """Carries rows and files to one MLflow run on a thread of its own.

    What the store did not take is tried again, with growing pauses, until the end; sending a row
    twice does no harm, because equal rows are one row to the store. `behind`: by name, up to which
    step rows stand in `events` that may be missing.
    """

    def __init__(
        self,
        client: Any,
        run_id: str,
        *,
        name: str,
        events: Path,
        behind: dict[str, int],
        notify: Notify,
        flush_seconds: float,
        capacity: int,
    ) -> None:
        self._client, self._run_id = client, run_id
        self._name, self._events, self._notify = name, events, notify
        self._flush_seconds, self._capacity = flush_seconds, capacity
        self._rows: deque[Row] = deque()
        self._files: dict[tuple[Path, str | None], None] = {}
        self._behind = behind
        self._lost = 0
        self._failing = False
        self._warned = False
        self._end: tuple[str, str | None] | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="mlflow-delivery", daemon=True)
        self._thread.start()

    def add_rows(self, rows: list[Row]) -> None:
        with self._changed:
            self._rows.extend(rows)
            excess = max(0, len(self._rows) - self._capacity)
            self._fall_behind(_last_steps(self._rows.popleft() for _ in range(excess)))
            if len(self._rows) >= METRICS_PER_CALL and not self._failing:
                self._changed.notify()

    def add_file(self, path: Path, folder: str | None) -> None:
        with self._changed:
            self._files[(path, folder)] = None

    def finish(self, status: str, error: str | None, seconds: float) -> bool:
        """Deliver the rest and set the run's status; tell whether all of it has arrived.

        Waiting is given up after `seconds`.
        """
        with self._changed:
            self._end = (status, error)
            self._changed.notify()
        self._thread.join(seconds)
        closed = not self._thread.is_alive() and not self._failing
        left = self._lost + len(self._rows) + len(self._files)
        if closed and not left and not self._behind:
            return True
        more = "more than " if self._behind else ""
        # A message, not a second warning, where the failure has been announced already.
        self._notify(
            "message" if self._warned else "warning",
            f"MLflow at {self._name} is not complete (metric rows and files missing: {more}{left}, "
            f"run closed: {'yes' if closed else 'no'}); {self._events} has everything, and "
            f"{command(task='deliver', run=self._events.parent)} sends it.",
        )
        return False

    def _work(self) -> None:
        pause = self._flush_seconds
        while self._end is None:
            with self._changed:
                self._changed.wait_for(self._should_send, timeout=pause)
            if self._end is None:
                pause = self._flush_seconds if self._deliver() else min(2 * pause, LONGEST_PAUSE)
        status, error = self._end
        self._deliver()
        folder = self._events.parent
        model = partial(log_model, self._client, self._run_id, folder)
        # Without one nothing is asked of the store, which would seem to answer again.
        if has_model(folder) and not self._attempt(model, lost=1):
            with self._changed:
                self._lost += 1
        self._attempt(partial(terminate, self._client, self._run_id, status, error, folder))

    def _should_send(self) -> bool:
        full = len(self._rows) >= METRICS_PER_CALL and not self._failing
        return self._end is not None or full

    def _deliver(self) -> bool:
        """Send all that waits, figures first; `False` when something has to wait on."""
        while rows := self._take_rows():
            if not self._attempt(partial(self._send_rows, rows), lost=len(rows)):
                with self._changed:
                    self._rows.extendleft(reversed(rows))
                return False
        with self._changed:
            behind, self._behind = self._behind, {}
        if behind and not self._attempt(partial(self._catch_up, behind), lost=len(behind)):
            with self._changed:
                self._fall_behind(behind)
            return False
        delivered = True
        with self._changed:
            files = list(self._files)
        for path, folder in files:
            with self._changed:
                self._files.pop((path, folder))
            if not self._attempt(partial(self._send_file, path, folder), lost=1):
                with self._changed:
                    self._files[(path, folder)] = None
                delivered = False
        return delivered

    def _attempt(self, send: Callable[[], object], lost: int = 0) -> bool:
        """Call `send`; `False` if it is worth another try later. `lost` counts where it is not."""
        try:
            send()
        except Exception as error:
            self._warn(error)
            if isinstance(error, GONE) or getattr(error, "error_code", None) in REFUSALS:
                with self._changed:
                    self._lost += lost
                return True
            self._failing = True
            return False
        if self._failing:
            self._failing = False
            self._notify("message", f"MLflow at {self._name} answers again.")
        return True

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            self._notify(
                "warning",
                f"MLflow at {self._name} failed: {reason(error)} The run goes on; "
                f"{self._events} keeps everything, and what MLflow has not got is sent again "
                "while the run lasts.",
            )

    def _take_rows(self) -> list[Row]:
        with self._changed:
            return [self._rows.popleft() for _ in range(min(len(self._rows), METRICS_PER_CALL))]

    def _fall_behind(self, last_steps: Mapping[str, int]) -> None:
        for key, step in last_steps.items():
            self._behind[key] = max(step, self._behind.get(key, step))

    def _catch_up(self, behind: Mapping[str, int]) -> None:
        """Send from `events` what the store lacks; all later rows are in the queue or were sent."""
        rows = Rows(stored_steps(self._client, self._run_id, behind))
        recorded = itertools.chain.from_iterable(recorded_rows(self._events.parent, rows))
        send_rows(
            self._client,
            self._run_id,
            (row for row in recorded if row[3] <= behind.get(row[0], -1)),
        )

    def _send_rows(self, rows: list[Row]) -> None:
        send_rows(self._client, self._run_id, rows)

    def _send_file(self, path: Path, folder: str | None) -> None:
        self._client.log_artifact(self._run_id, str(path), folder)


def find_run(client: Any, experiment_id: str, run_id: str | None, directory: Path) -> Any | None:
    """Return the run with this id or, where it is not known, the one with this directory."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        # A filter of MLflow's has no way to write both quotes; `_` stands for any character.
        pattern = re.sub(r"['\\]", "_", str(directory))
        like = client.search_runs([experiment_id], f"tags.{DIRECTORY_TAG} LIKE '{pattern}'")
        return next((run for run in like if run.data.tags[DIRECTORY_TAG] == str(directory)), None)
    try:
        stored = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return stored if stored.info.lifecycle_stage == "active" else None


def create_run(
    client: Any, experiment_id: str, run: RunInfo, start_milliseconds: int | None = None
) -> str:
    """Create the run with its params and tags, and return its id."""
    created = client.create_run(
        experiment_id, start_time=start_milliseconds, run_name=run.name, tags=_tags(run)
    )
    run_id: str = created.info.run_id
    _log_params(client, run_id, _params(run))
    _log_datasets(client, run_id, run)
    return run_id


def describe(client: Any, found: Any, run: RunInfo) -> None:
    """Write tags and data sets, and those params that the run lacks: they cannot be changed."""
    from mlflow.entities import RunTag

    run_id, params = found.info.run_id, _params(run)
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in _tags(run).items()])
    missing = params.keys() - found.data.params.keys()
    _log_params(client, run_id, {key: params[key] for key in missing})
    _log_datasets(client, run_id, run)


def stored_steps(
    client: Any, run_id: str, keys: Iterable[str] | None = None
) -> dict[str, Iterable[int]]:
    """Return the steps at which the store has a value of every metric, or of those named."""
    known = client.get_run(run_id).data.metrics.keys() if keys is None else keys
    return {
        key: array("q", (row.step for row in client.get_metric_history(run_id, key)))
        for key in known
    }


def send_rows(client: Any, run_id: str, rows: Iterable[Row]) -> int:
    """Send the rows, in as few calls as MLflow allows; return how many there were."""
    from mlflow.entities import Metric

    rest, sent = iter(rows), 0
    while chunk := [Metric(*row) for row in itertools.islice(rest, METRICS_PER_CALL)]:
        client.log_batch(run_id, metrics=chunk)
        sent += len(chunk)
    return sent


def terminate(
    client: Any,
    run_id: str,
    status: str,
    error: str | None,
    directory: Path,
    milliseconds: int | None = None,
) -> None:
    """End the run with a status of MLflow's, now or at the time given; its results become tags."""
    from mlflow.entities import RunTag

    tags = [RunTag(key, redacted(value)) for key, value in result_tags(directory).items()]
    if tags:
        client.log_batch(run_id, tags=tags)
    if error:
        client.set_tag(run_id, "error", redacted(error)[:LONGEST_PARAM])
    client.set_terminated(run_id, status, milliseconds)


def open_store(uri: str, experiment: str) -> tuple[Any, str]:
    """Return a client of the store at `uri` (as `resolve_uri` gives it) and the experiment's id.

    Creates what is missing. A SQLite file is opened under a lock beside it: MLflow breaks a fresh
    one that several processes open at once, and tries ten times, with doubling pauses, to open
    one that cannot be opened. Raises whatever keeps the store from being used, within about
    `SECONDS_TO_ANSWER` for a server that does not answer.
    """
    if is_server(uri):
        _check_answer(uri)
    else:
        check_database(_sqlite_file(uri))
    mlflow_client = _load_mlflow()
    if is_server(uri):
        client = mlflow_client(tracking_uri=uri)
        return client, _experiment(client, experiment, None)
    file = _sqlite_file(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock", timeout=SECONDS_FOR_LOCK):
        client = mlflow_client(tracking_uri=uri)
        # Absolute, or the artifacts would lie wherever a later reader happens to stand.
        return client, _experiment(client, experiment, (file.parent / "mlruns").as_uri())


def open_known(uri: str) -> Any:
    """Return a client of a store that is there: nothing is created.

    Raises whatever keeps it from being used, as `open_store` does.
    """
    if is_server(uri):
        _check_answer(uri)
    elif not _sqlite_file(uri).exists():
        raise FileNotFoundError(f"{_sqlite_file(uri)} is not there")
    else:
        check_database(_sqlite_file(uri))
    mlflow_client = _load_mlflow()
    if is_server(uri):
        return mlflow_client(tracking_uri=uri)
    with FileLock(f"{_sqlite_file(uri)}.lock", timeout=SECONDS_FOR_LOCK):
        return mlflow_client(tracking_uri=uri)


def unusable(uri: str, error: Exception) -> UserError:
    """Return the error for a store that is required and cannot be opened."""
    repair = "" if isinstance(error, StoreError) else "Start or repair it, or run without it: "
    without = "tracking.required=false runs without it, tracking=jsonl does not try."
    return UserError(
        f"tracking.uri={shown(uri)}: MLflow cannot be used: {reason(error, uri)} {repair}{without}"
    )


def resolve_uri(uri: str | None) -> str:
    """Return the store's address with an absolute path, without user and password.

    These stay in the environment, where MLflow reads them. `None` is what MLFLOW_TRACKING_URI
    says, if that is an address that is accepted, else mlflow.db where we stand. Raises `UserError`
    when it is neither a SQLite file nor an http(s) address.
    """
    if uri is None:
        wanted = os.environ.get(ADDRESS_VARIABLE)
        if wanted and _accepted(wanted):
            return resolve_uri(wanted)
        return f"{SQLITE}{Path.cwd() / 'mlflow.db'}"
    try:
        uri = use(uri)
        if _accepted(uri):
            if is_server(uri):
                return uri.rstrip("/")
            return f"{SQLITE}{expanded('tracking.uri', uri[len(SQLITE) :]).absolute()}"
        why = ""
    except ValueError as error:
        why = f" {str(error)[0].upper()}{str(error)[1:]}."
    raise UserError(
        f"tracking.uri={shown(uri)}: accepted are sqlite:///FILE (a relative FILE is taken from "
        "the working directory), http://HOST:PORT or https://HOST of an MLflow server, or null "
        f"for {ADDRESS_VARIABLE} or, without it, mlflow.db in the working directory.{why}"
    )


def unused_address(tracking: TrackingConfig) -> str | None:
    """Return in words that MLFLOW_TRACKING_URI is set and not used; None where it is used."""
    wanted = os.environ.get(ADDRESS_VARIABLE)
    if not wanted or not isinstance(tracking, InStore):
        return None
    used = resolve_uri(tracking.uri)
    if _accepted(wanted):
        there = shown(wanted).rstrip("/") if is_server(wanted) else resolve_uri(wanted)
        said = f"MLFLOW_TRACKING_URI={shown(wanted)} is not used: {used} is"
        return None if there == used else said
    return (
        f"MLFLOW_TRACKING_URI={shown(wanted)} is not used, it is neither sqlite:///FILE nor "
        f"http(s)://HOST; the run is recorded at {used}"
    )


def _accepted(uri: str) -> bool:
    try:
        parts = urlsplit(uri)
        server = parts.scheme in SERVERS and bool(parts.hostname)
    except ValueError:
        return False
    return server or (uri.startswith(SQLITE) and uri not in (SQLITE, f"{SQLITE}:memory:"))


def is_server(uri: str) -> bool:
    """Whether `uri` is the address of an MLflow server."""
    return urlsplit(uri).scheme in SERVERS


def ui_command(uri: str | None) -> str:
    """Return the command that opens the MLflow UI on the store; for a server, its address."""
    resolved = resolve_uri(uri)
    if is_server(resolved):
        return shown(resolved)
    return f"mlflow ui --backend-store-uri {shlex.quote(resolved)} --workers 1"


def page_of(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page, behind the command that serves it where one is needed.

    With the view of runs that were trained: MLflow opens the one of agents otherwise.
    """
    server = is_server(uri)
    base = shown(uri) if server else f"http://127.0.0.1:{UI_PORT}"
    where = f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
    return where if server else f"{ui_command(uri)}\n  this run, while that serves: {where}"


def clean_param(value: Param) -> str:
    """Return a param's value as text of less than 500 characters."""
    text = str(value)
    return text if len(text) <= LONGEST_PARAM else f"{text[: LONGEST_PARAM - 1]}…"


def shown(uri: str) -> str:
    """Return `uri`, or a text with addresses in it, without users' names and passwords."""
    return redacted(uri)


def reason(error: BaseException, uri: str = "") -> str:
    """Return the first line of what went wrong with the store at `uri`, as a sentence."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    if uri:
        line = line.replace("<database_uri>", shlex.quote(shown(uri)))
    line = shown(line).rstrip(".:")
    own = isinstance(error, StoreError)  # which has its remedy at its end
    line = f"{line}." if own or len(line) <= LONGEST_REASON else f"{line[:LONGEST_REASON]}…"
    return f"{line}{_remedy(error, str(error))}"


def _remedy(error: BaseException, text: str) -> str:
    """What helps against two kinds of failure that say too little themselves."""
    if "disk is full" in text or getattr(error, "errno", None) in FULL:
        free = free_bytes(Path.cwd())
        return f" {in_bytes(free)} are free in {Path.cwd()}." if free is not None else ""
    if "error code 401" in text or "error code 403" in text:
        return (
            f" Its user and password are taken from {' and '.join(VARIABLES)}: they are never "
            "written with a run."
        )
    return ""


def _now() -> int:
    return int(time.time() * 1000)


def _last_steps(rows: Iterable[Row]) -> dict[str, int]:
    """The highest step of every name."""
    found: dict[str, int] = {}
    for key, _, _, step in rows:
        found[key] = max(step, found.get(key, step))
    return found


def _tags(run: RunInfo) -> dict[str, str]:
    known = {DIRECTORY_TAG: str(run.directory), "mlflow.parentRunId": run.parent_run_id}
    return {key: value for key, value in known.items() if value} | origin() | run.tags


def _params(run: RunInfo) -> dict[str, str]:
    return {clean_key(key): clean_param(value) for key, value in run.params.items()}


def _sqlite_file(uri: str) -> Path:
    return Path(uri[len(SQLITE) :].partition("?")[0])


def _experiment(client: Any, name: str, artifact_location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            created: str = client.create_experiment(name, artifact_location=artifact_location)
            return created
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage != "active":
        raise ValueError(
            f"experiment '{name}' is deleted there: restore it with `mlflow experiments restore "
            f"-x {found.experiment_id}` or choose another tracking.experiment"
        )
    experiment_id: str = found.experiment_id
    return experiment_id


def _log_params(client: Any, run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param as MlflowParam

    entries = iter([MlflowParam(key, value) for key, value in params.items()])
    while chunk := list(itertools.islice(entries, PARAMS_PER_CALL)):
        client.log_batch(run_id, params=chunk)


def _log_datasets(client: Any, run_id: str, run: RunInfo) -> None:
    """The data sets of the run, as MLflow's inputs; it keeps equal ones once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(
                name=one.name,
                digest=one.digest,
                source_type="sseg-nase",
                source=json.dumps({"uri": one.name}),
                profile=json.dumps({"images": one.images}),
            ),
            [InputTag("mlflow.data.context", one.roles)],
        )
        for one in run.datasets
    ]
    if inputs:
        client.log_inputs(run_id, inputs)


def _check_answer(uri: str) -> None:
    """Raise `ConnectionError` unless something answers HTTP at `uri` soon; any answer will do."""
    address = f"{shown(uri)}/health"
    outcome: list[Exception | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(address, timeout=SECONDS_TO_ANSWER):
                outcome.append(None)
        except (OSError, http.client.HTTPException, ValueError) as error:
            outcome.append(error)

    # On a thread, because looking up a name knows no time limit.
    thread = threading.Thread(target=ask, name="mlflow-check", daemon=True)
    thread.start()
    thread.join(SECONDS_TO_ANSWER + 0.5)
    if not outcome:
        raise ConnectionError(f"no answer from the server within {SECONDS_TO_ANSWER:.0f} s")
    error = outcome[0]
    why = error.reason if isinstance(error, urllib.error.URLError) else error
    if error is None or isinstance(error, urllib.error.HTTPError) or isinstance(why, ssl.SSLError):
        return  # It answers; MLflow decides on refusals and certificates, by its own settings.
    raise ConnectionError(f"the server does not answer ({why})")


def _load_mlflow() -> Any:
    """Import mlflow, quiet and with time limits that suit us, unless the user set them."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    }.items():
        os.environ.setdefault(name, value)

    from mlflow.tracking import MlflowClient

    # Slow to import, and better not under the lock.
    importlib.import_module("mlflow.store.tracking.sqlalchemy_store")

    # From here on what matters of a failure is said by us.
    for name in ("mlflow", "alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return MlflowClient
