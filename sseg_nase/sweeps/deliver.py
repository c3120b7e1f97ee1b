"""`task=deliver`: runs that ended while their MLflow was away, sent from their directories."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import Timeout

from sseg_nase.config.commands import command
from sseg_nase.config.groups.tracking import InStore, OnlyFiles, TrackingConfig
from sseg_nase.config.options import filled, option_of
from sseg_nase.config.schema import Config
from sseg_nase.errors import DONE, FAILURE, UserError
from sseg_nase.rundir.config import read_config
from sseg_nase.rundir.events import has_events
from sseg_nase.rundir.lock import held, locked
from sseg_nase.rundir.names import CONFIG
from sseg_nase.rundir.status import (
    ENDS,
    INTERRUPTED,
    RUNNING,
    Status,
    end_dead,
    own_run_id,
    status_of,
    write_status,
)
from sseg_nase.rundir.unreadable import UnreadableError
from sseg_nase.sweeps.folder import SweepFolder, looked_at
from sseg_nase.sweeps.status import GONE
from sseg_nase.tracking.delivery import Delivery, Undelivered, send_missing
from sseg_nase.tracking.mlflow_sink import resolve_uri, shown

Say = Callable[[str], None]


def deliver(config: Config, say: Say) -> int:
    """`task=deliver`: send what MLflow has not got; return the exit code, 1 where it still fails.

    `tracking.uri` of this command names another store than the one that a run has.
    """
    asked = config.tracking
    given = asked if isinstance(asked, InStore) and asked.uri is not None else None
    if config.sweep.dir is not None:
        return deliver_sweep(looked_at(config.sweep.dir, Path(config.paths.output_dir)), say, given)
    directory = Path(filled(config.run, "run")).absolute()
    try:
        say(f"{directory}: {deliver_run(directory, given)}")
    except Undelivered as error:
        say(f"{directory}: {error}")
        return FAILURE
    return DONE


def deliver_sweep(sweep: SweepFolder, say: Say, given: InStore | None = None) -> int:
    """Deliver the ended runs of a sweep that say `undelivered`, as far as the store answers.

    Each is told about; nothing is said when there is none. With a store that is `given`, all ended
    runs are delivered. Returns the exit code.
    """
    runs = [job.run for job in sweep.jobs if job.run is not None]
    ended = [run for run in runs if status_of(run).get("status") in ENDS and not locked(run)]
    waiting = [run for run in ended if given is not None or status_of(run).get("undelivered")]
    code = DONE
    for number, run in enumerate(waiting):
        try:
            say(f"{run}: {deliver_run(run, given, sweep.plan['parent_run_id'])}")
        except Undelivered as error:  # it will not take the others either
            rest = len(waiting) - number
            again = command(task="deliver", sweep=sweep.path)
            say(f"{error} {rest} runs are not delivered; try later: {again}")
            return FAILURE
        except UserError as error:  # one of its files is broken, or it has begun again
            say(f"{run}: not delivered: {error}")
            code = FAILURE
    return code


def deliver_run(
    directory: Path, given: InStore | None = None, parent_run_id: str | None = None
) -> str:
    """Send what MLflow has not got of a run that is over, and say what that was.

    The store is the run's own, or the one `given`, which then is the run's. `parent_run_id` is for
    a run that knows of no parent. Raises `UserError` where there is nothing to send or nowhere to
    send it to, and `Undelivered` when the store still does not take it.
    """
    config = _stored_tracking(directory)
    if _died(status_of(directory)):
        end_dead(directory, INTERRUPTED, GONE)
    try:
        with held(directory):
            said = status_of(directory)
            _check_over(directory, said)
            uri = _destination(directory, said, config, given)
            sent = send_missing(
                directory,
                uri,
                str(config["experiment"]) if given is None else given.experiment,
                run_id=own_run_id(directory, said)[0],
                status=said["status"],
                error=said.get("error"),
                parent_run_id=parent_run_id,
            )
            now: Status = {**said, "tracker_run_id": sent.run_id, "tracking_uri": uri}
            now["directory"] = str(directory)
            now.pop("undelivered", None)
            if now != said:
                write_status(directory, now)
    except Timeout as error:
        raise UserError(
            f"run={directory}: this run is still going on in another process; what MLflow has "
            "not got is sent when it ends."
        ) from error
    return _in_words(sent, uri)


def _died(said: Status) -> bool:
    """Whether a run that says RUNNING and holds no lock is dead for sure: locks may be local."""
    host = said.get("process", {}).get("host")
    return said.get("status") == RUNNING and host in (None, socket.gethostname())


def _check_over(directory: Path, said: Status) -> None:
    status = said.get("status")
    if status == RUNNING:
        raise UserError(
            f"run={directory}: this run is still going on, on {said['process']['host']}, as far "
            "as can be seen from here."
        )
    if status not in ENDS or not has_events(directory):
        raise UserError(f"run={directory}: this run has told nothing that could be delivered.")


def _destination(
    directory: Path,
    said: Status,
    config: Mapping[str, Any],
    given: InStore | None,
) -> str:
    if given is not None:
        return resolve_uri(given.uri)
    nowhere = option_of(TrackingConfig, config["name"]) is OnlyFiles
    if nowhere and not said.get("tracking_uri"):
        raise UserError(
            f"run={directory}: it has no MLflow store (tracking={config['name']}). Name one: add "
            "tracking.uri=sqlite:///FILE or tracking.uri=http://HOST:PORT."
        )
    return resolve_uri(said.get("tracking_uri") or config["uri"])


def _stored_tracking(directory: Path) -> Mapping[str, Any]:
    try:
        tracking = read_config(directory)["tracking"]
        known = {key: tracking[key] for key in ("name", "experiment")}
        return {**known, "uri": tracking.get("uri")}
    except (UnreadableError, KeyError, TypeError) as error:
        raise UserError(
            f"run={directory}: not the directory of a run (no readable {CONFIG} there). "
            "Name one like runs/<experiment>/<time>-<id>."
        ) from error


def _in_words(sent: Delivery, uri: str) -> str:
    gone = f" (gone from the disk: {', '.join(map(str, sent.gone))})" if sent.gone else ""
    if not sent.anything:
        return f"nothing is missing in MLflow at {shown(uri)}{gone}"
    return f"{sent.rows:,} metric rows and {sent.files} files sent to MLflow at {shown(uri)}{gone}"
