"""From the seed network and the records of its mutations to every architecture in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sseg_nase.errors import UserError
from sseg_nase.evolution.history import MutationRecord, counts
from sseg_nase.nets.description import Description
from sseg_nase.nets.mutations.operator import rebuild


class ReplayError(ValueError):
    """A record that does not follow from the seed and the records before it.

    `index` counts the records given, from 0.
    """

    def __init__(self, index: int, what: str) -> None:
        super().__init__(f"mutation {index}: {what}")
        self.index = index


def replay(
    seed: Description, records: Iterable[MutationRecord | Mapping[str, Any]]
) -> list[Description]:
    """The architectures after each accepted mutation, `seed` first.

    Every mutation is made again from its record's kind and target; blocks, channels, params and
    macs before and after it must be the recorded ones. Mutations that were rolled back are checked
    alike and change nothing. Raises `ReplayError`.
    """
    architectures = [seed]
    for index, given in enumerate(records):
        record = given if isinstance(given, MutationRecord) else _read(index, given)
        _compare(index, "before", record.before, architectures[-1])
        try:
            mutation = rebuild(record.kind, record.target, architectures[-1])
        except UserError as error:
            raise ReplayError(index, str(error)) from error
        _compare(index, "after", record.after, mutation.after)
        if record.accepted:
            architectures.append(mutation.after)
    return architectures


def _read(index: int, data: Mapping[str, Any]) -> MutationRecord:
    try:
        record = MutationRecord.from_dict(data)
    except TypeError as error:
        raise ReplayError(index, f"not a record ({error})") from error
    kinds = {"kind": str, "target": Mapping, "before": Mapping, "after": Mapping, "accepted": bool}
    for name, kind in kinds.items():
        value = getattr(record, name)
        if not isinstance(value, kind):
            raise ReplayError(index, f"{name} is {value!r}, not a {kind.__name__}")
    return record


def _compare(index: int, when: str, recorded: Mapping[str, Any], architecture: Description) -> None:
    for name, value in counts(architecture).items():
        if recorded.get(name) != value:
            raise ReplayError(
                index, f"{when}.{name} is {recorded.get(name)} in the record, rebuilt it is {value}"
            )
