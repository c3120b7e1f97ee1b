"""The MLflow store as a sweep sees it: its parent run, and runs known by their fingerprint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sseg_nase.config.groups.tracking import InStore, TrackingConfig
from sseg_nase.provenance.git import origin
from sseg_nase.tracking.mlflow_sink import (
    DIRECTORY_TAG,
    LONGEST_PARAM,
    MLFLOW_STATUS,
    open_store,
    reason,
    resolve_uri,
    shown,
    unusable,
)
from sseg_nase.tracking.rows import NOTE_TAG, clean_key

STATUS = {theirs: ours for ours, theirs in MLFLOW_STATUS.items()}
# The fingerprint of a config as it was composed: known before the machine that it will run on is.
ASKED_TAG = "asked_fingerprint"

Warn = Callable[[str], None]


@dataclass(frozen=True)
class KnownRun:
    """A run in the store: `status` is FINISHED, FAILED, INTERRUPTED or RUNNING."""

    run_id: str
    status: str
    directory: Path
    commit: str | None


class SweepStore:
    """What a sweep asks of MLflow. Where there is no store, everything answers with nothing.

    A store that fails never stops a sweep, but for `tracking.required` when it is opened: then
    `UserError` is raised. `warn` takes the one warning about it.
    """

    def __init__(self, tracking: TrackingConfig, warn: Warn) -> None:
        self._warn = warn
        self._client: Any = None
        self._experiment_id = ""
        self._uri = ""
        if not isinstance(tracking, InStore):
            return
        self._uri = resolve_uri(tracking.uri)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what mlflow stands on is full of deprecations
                self._client, self._experiment_id = open_store(self._uri, tracking.experiment)
        except Exception as error:
            if tracking.required:
                raise unusable(self._uri, error) from error
            self._failed(error)

    def begin(self, known_id: str | None, name: str, tags: Mapping[str, str]) -> str | None:
        """Return the id of the sweep's parent run, RUNNING: the known one, or a new one."""

        def parent() -> str:
            from mlflow.exceptions import MlflowException

            if known_id is not None:
                try:
                    self._client.update_run(known_id, status="RUNNING")
                    return known_id
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
            created = self._client.create_run(
                self._experiment_id, run_name=shown(name), tags={**origin(), **tags}
            )
            run_id: str = created.info.run_id
            return run_id

        return self._try(parent, None)

    def known(self, fingerprint: str) -> list[KnownRun]:
        """Return the runs of the experiment that were asked for by this config, latest first."""
        return self._search(f"tags.{ASKED_TAG} = '{fingerprint}'")

    def running(self) -> list[KnownRun]:
        """Return the runs of the experiment that have not ended, as far as the store knows."""
        return self._search("attributes.status = 'RUNNING'")

    def _search(self, condition: str) -> list[KnownRun]:
        def search() -> list[KnownRun]:
            found = self._client.search_runs(
                [self._experiment_id], condition, order_by=["attributes.start_time DESC"]
            )
            return [_known(run) for run in found if DIRECTORY_TAG in run.data.tags]

        return self._try(search, [])

    def end(self, run_id: str, status: str, error: str | None) -> None:
        """Set how a run ended that could not say so itself."""

        def set_ended() -> None:
            if error:
                self._client.set_tag(run_id, "error", shown(error)[:LONGEST_PARAM])
            self._client.set_terminated(run_id, MLFLOW_STATUS[status])

        self._try(set_ended, None)

    def report(
        self,
        run_id: str,
        figures: Mapping[str, float],
        files: Sequence[tuple[Path, str]],
        text: str | None,
    ) -> None:
        """Keep figures and files (with their folders) with the parent run.

        `text` is shown on its page.
        """

        def log() -> None:
            for key, value in figures.items():
                self._client.log_metric(run_id, clean_key(key), value)
            for path, folder in files:
                self._client.log_artifact(run_id, str(path), folder)
            if text:
                self._client.set_tag(run_id, NOTE_TAG, shown(text))

        self._try(log, None)

    def _try(self, ask: Callable[[], Any], otherwise: Any) -> Any:
        if self._client is None:
            return otherwise
        try:
            return ask()
        except Exception as error:
            self._failed(error)
            return otherwise

    def _failed(self, error: Exception) -> None:
        self._client = None
        self._warn(
            f"MLflow at {shown(self._uri)} cannot be used: {reason(error, self._uri)} The sweep "
            "goes on; its directory has everything."
        )


def _known(run: Any) -> KnownRun:
    tags = run.data.tags
    return KnownRun(
        run_id=run.info.run_id,
        status=STATUS.get(run.info.status, "RUNNING"),
        directory=Path(tags[DIRECTORY_TAG]),
        commit=tags.get("mlflow.source.git.commit"),
    )
