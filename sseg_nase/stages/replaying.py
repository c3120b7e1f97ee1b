"""The architectures of a run, rebuilt from its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from sseg_nase.errors import UserError
from sseg_nase.evolution.replay import ReplayError, replay
from sseg_nase.nets.building import asked_for, described
from sseg_nase.nets.description import Description


def replayed(folder: Path) -> tuple[list[dict[str, Any]], list[Description]]:
    """The records of the run in `folder`, and every architecture rebuilt from them and its config.

    Needs config.yaml and mutations.jsonl alone; the last architecture must be the one of
    architecture.json where the run has come to write it. Raises `UserError`.
    """
    seed = _seed_of(folder / "config.yaml")
    path = folder / "mutations.jsonl"
    records = _records_of(path)
    try:
        architectures = replay(seed, records)
    except ReplayError as error:
        raise UserError(
            f"run={folder}: {path.name}, {error}. Log and config.yaml do not belong together: one "
            "was changed after the run, or the run was resumed with another backbone."
        ) from error
    final = folder / "architecture.json"
    if final.exists() and _architecture_of(final) != architectures[-1]:
        raise UserError(
            f"run={folder}: {final.name} is not the architecture after the last of "
            f"{len(records)} mutations, {architectures[-1].summary()}. It was changed after the "
            f"run, or {path.name} is not complete."
        )
    return records, architectures


def _seed_of(path: Path) -> Description:
    text = _text_of(path)
    try:
        config = yaml.safe_load(text)
        task = config["task"]
        seed = asked_for(config)
        seed.summary()
    except (yaml.YAMLError, KeyError, TypeError, AssertionError) as error:
        raise _damaged(path, error) from error
    if task != "pipeline":
        raise UserError(
            f"run={path.parent}: its task was {task}, so it mutated nothing. Give the folder of "
            "the run that trained the network."
        )
    if not seed.axes:
        raise UserError(
            f"run={path.parent}: its backbone is {seed.name}, which does not evolve: there is "
            "nothing to replay."
        )
    return seed


def _records_of(path: Path) -> list[dict[str, Any]]:
    records = []
    for index, line in enumerate(_text_of(path).splitlines()):
        try:
            record = json.loads(line)
            found = record["index"]
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error, f", mutation {index}") from error
        if found != index:
            raise UserError(
                f"run={path.parent}: {path.name} holds mutation {found} where mutation {index} "
                "belongs. Lines are missing or were moved; the log is needed whole."
            )
        records.append(record)
    return records


def _architecture_of(path: Path) -> Description:
    text = _text_of(path)
    try:
        return described(json.loads(text))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise _damaged(path, error) from error


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"run={path.parent}: {path.name} cannot be read ({error.strerror}). Give the folder "
            "of a run, <paths.output_dir>/<experiment_name>/<id>."
        ) from error
    except UnicodeDecodeError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception, where: str = "") -> UserError:
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"  # YAML's span several lines
    return UserError(
        f"run={path.parent}: {path.name}{where} is damaged ({what}). Restore the file as the run "
        "wrote it."
    )
