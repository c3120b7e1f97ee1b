"""MLflow: one run per run, written off the training thread, never in the way of training.

Only this module imports mlflow, and only when a sink opens. It uses `MlflowClient` and none of
mlflow's global state, so several runs may live in one process.
"""

from __future__ import annotations

import getpass
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
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

import sseg_nase
from sseg_nase.errors import UserError
from sseg_nase.tracking.sink import FAILED, FINISHED, INTERRUPTED, Param, Resumed, RunInfo, Sink
from sseg_nase.tracking.source import git_commit

SQLITE = "sqlite:///"
SERVERS = ("http", "https")
RUN_FILES = (
    "config.yaml",
    "overrides.yaml",
    "architecture.json",
    "mutations.jsonl",
    "episodes.npz",
    "results.json",
)
MLFLOW_STATUS = {FINISHED: "FINISHED", FAILED: "FAILED", INTERRUPTED: "KILLED"}
MUTATION_CODES = {"GROW": 1, "WIDEN": 2, "PRUNE": 3}

# What MLflow takes in one call, and in one value.
METRICS_PER_CALL, PARAMS_PER_CALL, LONGEST_PARAM, LONGEST_KEY = 1000, 100, 499, 250
# Not worth another try: what the store refuses, and a file that cannot be read or written.
GONE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")

DIRECTORY_TAG = "directory"
SECONDS_TO_ANSWER = 4.0
SECONDS_FOR_LOCK = 120.0
LONGEST_PAUSE = 60.0
LONGEST_REASON = 300

Notify = Callable[[str, str], None]
Row = tuple[str, float, int, int]  # key, value, timestamp in ms, step


class MlflowSink(Sink):
    """A run in an MLflow store: a SQLite file, or a server.

    `uri`: `None` for mlflow.db in the working directory, `sqlite:///FILE`, or a server's http(s)
    address; `required`: whether a store that cannot be opened is an error, or a warning and a run
    without MLflow. A store that stops answering later never stops the run: rows wait in memory (at
    most `capacity` of them, the oldest give way) and are sent when it answers again. `notify(kind,
    text)` takes the warnings and messages about that, also from the delivering thread.

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
        self._directory = Path()
        self._delivery: _Delivery | None = None
        self._last_step: dict[str, int] = {}
        self._stored_steps: dict[str, set[int]] = {}

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; after a failed `open`, the one that was to be resumed."""
        return self._run_id

    def open(self, run: RunInfo) -> None:
        """Create the run, or go on with the resumed one, and start delivering.

        A resumed run first gets the figures that it told but that did not arrive: events.jsonl has
        them.

        Raises `UserError` when the store cannot be used and `required` is set.
        """
        self._run_id = None if run.resumed is None else run.resumed.run_id
        self._directory = run.directory
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what mlflow stands on is full of deprecations
                client, experiment_id = open_store(self.uri, self._experiment)
                run_id = self._begin(client, experiment_id, run)
        except Exception as error:
            if self._required:
                raise unusable(self.uri, error) from error
            self._notify(
                "warning",
                f"MLflow at {shown(self.uri)} cannot be used: {reason(error)} The run goes on "
                f"without it; {run.directory / 'events.jsonl'} keeps everything.",
            )
            return
        self._run_id = run_id
        self._delivery = _Delivery(
            client,
            run_id,
            name=shown(self.uri),
            kept_in=run.directory / "events.jsonl",
            notify=self._notify,
            flush_seconds=self._flush_seconds,
            capacity=self._capacity,
        )
        self.artifact(run.config_file)
        if run.resumed is not None:
            self._catch_up(run.directory / "events.jsonl", run.resumed)

    def _catch_up(self, events: Path, until: Resumed) -> None:
        """Queue the figures and mutations that stand in events.jsonl, up to where the run goes on.

        An earlier resume told some of them twice: the first time counts, as for all figures.
        """
        if not events.exists():
            return
        mutations = 0
        for line in events.read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            kind, values = told["kind"], told["values"]
            if kind == "metrics" and told["step"] <= until.step:
                known = {key: value for key, value in values.items() if value is not None}
                self.metrics(known, told["step"])
            elif kind == "mutation" and mutations <= values["index"] < until.mutations:
                mutations = values["index"] + 1
                self.event(kind, values)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Queue the figures; a (name, step) that the run has already is left out."""
        if self._delivery is None:
            return
        now, step = int(time.time() * 1000), int(step)
        rows: list[Row] = []
        for name, value in values.items():
            key = clean_key(name)
            if step <= self._last_step.get(key, -1):
                continue
            self._last_step[key] = step
            if step not in self._stored_steps.get(key, ()):
                rows.append((key, float(value), now, step))
        self._delivery.add_rows(rows)

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Turn a mutation into `mutation/*` figures; other events are not MLflow's.

        `mutation/kind` is 1 for GROW, 2 for WIDEN, 3 for PRUNE. A second mutation at one step
        stands at the next step, because a metric has one value per step.
        """
        if kind != "mutation":
            return
        figures = {
            "mutation/index": values["index"],
            "mutation/kind": MUTATION_CODES[values["kind"]],
            "mutation/function_delta": values["function_delta"],
            "mutation/loss_before": values["loss_before"],
            "mutation/loss_after": values["loss_after"],
        }
        step = max(int(values["step"]), self._last_step.get("mutation/index", -1) + 1)
        self.metrics({key: value for key, value in figures.items() if value is not None}, step)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Queue a file; it is copied as it is when its turn comes."""
        if self._delivery is not None:
            self._delivery.add_file(path, folder)

    def close(self, status: str, error: str | None = None) -> None:
        """Deliver what waits, with the run's config, architecture, mutations and results, and end.

        FINISHED and FAILED are MLflow's own words; INTERRUPTED is its KILLED.
        """
        if self._delivery is None:
            return
        for name in RUN_FILES:
            if (self._directory / name).is_file():
                self._delivery.add_file(self._directory / name, None)
        self._delivery.finish(MLFLOW_STATUS[status], error, self._close_seconds)
        self._delivery = None

    def _begin(self, client: Any, experiment_id: str, run: RunInfo) -> str:
        from mlflow.entities import RunTag

        known = {
            DIRECTORY_TAG: str(run.directory),
            "mlflow.parentRunId": run.parent_run_id,
        }
        tags = {key: value for key, value in known.items() if value} | origin() | run.tags
        params = {clean_key(key): clean_param(value) for key, value in run.params.items()}

        if run.resumed is not None:
            found = self._find(client, experiment_id, run)
            if found is not None:
                known_id: str = found.info.run_id
                client.update_run(known_id, status="RUNNING")
                client.log_batch(known_id, tags=[RunTag(key, value) for key, value in tags.items()])
                # Params cannot be changed: only those that are missing are written.
                missing = {key: params[key] for key in params.keys() - found.data.params.keys()}
                _log_params(client, known_id, missing)
                for key in found.data.metrics:
                    history = client.get_metric_history(known_id, key)
                    self._stored_steps[key] = {metric.step for metric in history}
                return known_id
            self._notify(
                "warning",
                f"MLflow at {shown(self.uri)} does not have the run that is resumed; "
                "a new one takes over from here.",
            )

        run_id: str = client.create_run(experiment_id, run_name=run.name, tags=tags).info.run_id
        _log_params(client, run_id, params)
        return run_id

    def _find(self, client: Any, experiment_id: str, run: RunInfo) -> Any | None:
        """The run that is resumed: by its id, or, where that got lost, by its directory."""
        from mlflow.exceptions import MlflowException

        assert run.resumed is not None
        if run.resumed.run_id is None:
            where = str(run.directory).replace("'", "\\'")
            found = client.search_runs([experiment_id], f"tags.{DIRECTORY_TAG} = '{where}'")
            return found[0] if found else None
        try:
            stored = client.get_run(run.resumed.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None
        return stored if stored.info.lifecycle_stage == "active" else None


class _Delivery:
    """Carries rows and files to one MLflow run on a thread of its own.

    What the store did not take is tried again, with growing pauses, until the end; sending a row
    twice does no harm, because equal rows are one row to the store.
    """

    def __init__(
        self,
        client: Any,
        run_id: str,
        *,
        name: str,
        kept_in: Path,
        notify: Notify,
        flush_seconds: float,
        capacity: int,
    ) -> None:
        self._client, self._run_id = client, run_id
        self._name, self._kept_in, self._notify = name, kept_in, notify
        self._flush_seconds, self._capacity = flush_seconds, capacity
        self._rows: deque[Row] = deque()
        self._files: dict[tuple[Path, str | None], None] = {}
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
            while len(self._rows) > self._capacity:
                self._rows.popleft()
                self._lost += 1
            if len(self._rows) >= METRICS_PER_CALL and not self._failing:
                self._changed.notify()

    def add_file(self, path: Path, folder: str | None) -> None:
        with self._changed:
            self._files[(path, folder)] = None

    def finish(self, status: str, error: str | None, seconds: float) -> None:
        """Deliver the rest and set the run's status; give up waiting after `seconds`."""
        with self._changed:
            self._end = (status, error)
            self._changed.notify()
        self._thread.join(seconds)
        left = self._lost + len(self._rows) + len(self._files)
        if self._thread.is_alive() or self._failing or left:
            # A message, not a second warning, where the failure has been announced already.
            self._notify(
                "message" if self._warned else "warning",
                f"MLflow at {self._name} is not complete (metric rows and files missing: {left}, "
                f"run closed: {'no' if self._thread.is_alive() or self._failing else 'yes'}); "
                f"{self._kept_in} has everything.",
            )

    def _work(self) -> None:
        pause = self._flush_seconds
        while self._end is None:
            with self._changed:
                self._changed.wait_for(self._should_send, timeout=pause)
            if self._end is None:
                pause = self._flush_seconds if self._deliver() else min(2 * pause, LONGEST_PAUSE)
        status, error = self._end
        self._deliver()
        self._attempt(partial(self._terminate, status, error))

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

    def _attempt(self, send: Callable[[], None], lost: int = 0) -> bool:
        """Call `send`; `False` if it is worth another try later. What is refused counts as lost."""
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
                f"{self._kept_in} keeps everything, and what MLflow has not got is sent again "
                "while the run lasts.",
            )

    def _take_rows(self) -> list[Row]:
        with self._changed:
            return [self._rows.popleft() for _ in range(min(len(self._rows), METRICS_PER_CALL))]

    def _send_rows(self, rows: list[Row]) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(self._run_id, metrics=[Metric(*row) for row in rows])

    def _send_file(self, path: Path, folder: str | None) -> None:
        self._client.log_artifact(self._run_id, str(path), folder)

    def _terminate(self, status: str, error: str | None) -> None:
        if error:
            self._client.set_tag(self._run_id, "error", error[:LONGEST_PARAM])
        self._client.set_terminated(self._run_id, status)


def open_store(uri: str, experiment: str) -> tuple[Any, str]:
    """Return a client of the store at `uri` (as `resolve_uri` gives it) and the experiment's id.

    Creates what is missing. A SQLite file is opened under a lock beside it: MLflow breaks a fresh
    one that several processes open at once. Raises whatever keeps the store from being used,
    within about `SECONDS_TO_ANSWER` for a server that does not answer.
    """
    if is_server(uri):
        _check_answer(uri)
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


def origin() -> dict[str, str]:
    """Return the tags that say who runs which code."""
    known = {
        "mlflow.user": _user(),
        "mlflow.source.name": "sseg-nase",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git_commit(Path(sseg_nase.__file__).parent),
    }
    return {key: value for key, value in known.items() if value}


def unusable(uri: str, error: Exception) -> UserError:
    """Return the error for a store that is required and cannot be opened."""
    return UserError(
        f"tracking.uri={shown(uri)}: MLflow cannot be used: {reason(error)} "
        "Start or repair it, or run without it: tracking.required=false goes on with "
        "a warning, tracking=jsonl does not try."
    )


def resolve_uri(uri: str | None) -> str:
    """Return the store's address with an absolute path; `None` is mlflow.db where we stand.

    Raises `UserError` when it is neither a SQLite file nor an http(s) address.
    """
    if uri is None:
        return f"{SQLITE}{Path.cwd() / 'mlflow.db'}"
    parts = urlsplit(uri)
    if parts.scheme in SERVERS and parts.hostname:
        return uri.rstrip("/")
    if uri.startswith(SQLITE) and uri not in (SQLITE, f"{SQLITE}:memory:"):
        return f"{SQLITE}{Path(uri[len(SQLITE) :]).expanduser().absolute()}"
    raise UserError(
        f"tracking.uri={shown(uri)}: accepted are sqlite:///FILE (a relative FILE is taken from "
        "the working directory), http://HOST:PORT or https://HOST of an MLflow server, or null "
        "for mlflow.db in the working directory."
    )


def is_server(uri: str) -> bool:
    """Whether `uri` is the address of an MLflow server."""
    return urlsplit(uri).scheme in SERVERS


def ui_command(uri: str | None) -> str:
    """Return the command that opens the MLflow UI on the store; for a server, its address."""
    resolved = resolve_uri(uri)
    if is_server(resolved):
        return shown(resolved)
    return f"mlflow ui --backend-store-uri {shlex.quote(resolved)} --workers 1"


def clean_key(name: str) -> str:
    """Return `name` as MLflow accepts it for a param or metric: other characters become `_`."""
    segments = re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII).split("/")
    key = "/".join(segment for segment in segments if segment.strip(". "))
    return key[:LONGEST_KEY] or "_"


def clean_param(value: Param) -> str:
    """Return a param's value as text of less than 500 characters."""
    text = str(value)
    return text if len(text) <= LONGEST_PARAM else f"{text[: LONGEST_PARAM - 1]}…"


def shown(uri: str) -> str:
    """Return `uri`, or a text with addresses in it, without users' names and passwords."""
    return re.sub(r"//[^/@\s]+@", "//", uri)


def reason(error: BaseException) -> str:
    """Return the first line of what went wrong, as a sentence."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    line = shown(line).rstrip(".:")
    return f"{line[:LONGEST_REASON]}…" if len(line) > LONGEST_REASON else f"{line}."


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a name
        return None


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
        return  # It answers; MLflow itself judges refusals and certificates, with its own settings.
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
