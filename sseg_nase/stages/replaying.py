"""The architectures of a run, rebuilt from its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sseg_nase.errors import UserError
from sseg_nase.evolution.replay import ReplayError, replay
from sseg_nase.files import read_json
from sseg_nase.nets.building import asked_for, described
from sseg_nase.nets.description import Description
from sseg_nase.rundir.architecture import read_architecture
from sseg_nase.rundir.config import read_config
from sseg_nase.rundir.mutations import read_mutations
from sseg_nase.rundir.names import ARCHITECTURE, CONFIG, MUTATIONS, SEARCH
from sseg_nase.rundir.unreadable import UnreadableError, unreadable


def replayed(folder: Path) -> tuple[list[dict[str, Any]], list[Description]]:
    """The records of the run in `folder`, and every architecture rebuilt from them and its config.

    Needs config.yaml and mutations.jsonl alone; the last architecture must be the one of
    architecture.json where the run has come to write it. Raises `UserError`.
    """
    seed = _seed_of(folder)
    records = _records_of(folder)
    try:
        architectures = replay(seed, records)
    except ReplayError as error:
        raise UserError(
            f"run={folder}: {MUTATIONS}, {error}. Log and {CONFIG} do not belong together: one "
            "was changed after the run, or the run was resumed with another backbone."
        ) from error
    final = folder / ARCHITECTURE
    if final.exists() and _architecture_of(folder) != architectures[-1]:
        raise UserError(
            f"run={folder}: {final.name} is not the architecture after the last of "
            f"{len(records)} mutations, {architectures[-1].summary()}. It was changed after the "
            f"run, or {MUTATIONS} is not complete."
        )
    return records, architectures


def _seed_of(folder: Path) -> Description:
    try:
        config = read_config(folder)
        task = config["task"]
        seed = _supernet_of(folder) if task == "search" else asked_for(config)
        seed.summary()
    except UnreadableError as error:
        raise _refused(folder, error) from error
    except (KeyError, TypeError, AssertionError) as error:
        raise _refused(folder, unreadable(folder / CONFIG, error)) from error
    if task not in ("pipeline", "search"):
        raise UserError(
            f"run={folder}: its task was {task}, so it mutated nothing. Give the folder of "
            "the run that trained the network."
        )
    if not seed.axes and task != "search":
        raise UserError(
            f"run={folder}: its backbone is {seed.name}, which does not evolve: there is "
            "nothing to replay."
        )
    return seed


def _supernet_of(folder: Path) -> Description:
    """The network that a one-shot search has begun with. Raises `UserError` for other searches."""
    told = (read_json(folder / SEARCH) or {}).get("supernet")
    if told is None:
        raise UserError(
            f"run={folder}: this search has trained no supernet, so it mutated nothing. Give the "
            "folder of a candidate's run."
        )
    return described(told)


def _records_of(folder: Path) -> list[dict[str, Any]]:
    try:
        records = read_mutations(folder)
    except UnreadableError as error:
        raise _refused(folder, error) from error
    for index, record in enumerate(records):
        if record["index"] != index:
            raise UserError(
                f"run={folder}: {MUTATIONS} holds mutation {record['index']} where mutation "
                f"{index} belongs. Lines are missing or were moved; the log is needed whole."
            )
    return records


def _architecture_of(folder: Path) -> Description:
    try:
        return described(read_architecture(folder))
    except UnreadableError as error:
        raise _refused(folder, error) from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise _refused(folder, unreadable(folder / ARCHITECTURE, error)) from error


def _refused(folder: Path, error: UnreadableError) -> UserError:
    """The error for a run of which a file cannot be read."""
    if error.damaged:
        return UserError(
            f"run={folder}: {error.path.name}{error.where} is damaged ({error.reason}). Restore "
            "the file as the run wrote it."
        )
    return UserError(
        f"run={folder}: {error.path.name} cannot be read ({error.reason}). Give the folder "
        "of a run, <paths.output_dir>/<experiment_name>/<id>."
    )
