"""What one run wrote, read once: for figures and reports, which then need no files.

Nothing here raises for what a run lacks. What is missing or damaged becomes a note: one sentence
that a reader of the report can understand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sseg_nase.finite import finite
from sseg_nase.rundir.config import config_of
from sseg_nase.rundir.events import is_event, salvaged
from sseg_nase.rundir.names import CONFIG, EVENTS, MUTATIONS, RESULTS, STATUS
from sseg_nase.rundir.results import CLOSED_SECTIONS, SECTIONS, read_results, section
from sseg_nase.rundir.status import FINISHED, UNKNOWN, Status, read_status, standing
from sseg_nase.rundir.unreadable import UnreadableError

# After a resume, lines since the checkpoint stand there twice. What they are told apart by:
IDENTITY: Mapping[str, tuple[str, ...]] = {
    "epoch": ("epoch",),
    "level": ("epoch",),
    "finetune": ("number", "epoch"),
    "decision": ("intervention", "epoch"),
    "mutation": ("index",),
    "rollback": ("index",),
    "probation": ("index",),
}

Values = Mapping[str, Any]


class Series(NamedTuple):
    """A figure over training: `steps` ascending, and as many finite `values`."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class RunRecord:
    """All that the folder of a run holds, read. `config`: None where config.yaml cannot be.

    `events`: the `values` of events.jsonl by kind, in order, each once; those of `metrics` hold
    their `step`, too. `mutations`: the lines of mutations.jsonl by index, with every key that
    `sseg_nase.rundir.mutations.MUTATION_KEYS` names. `notes`: what was missing or damaged, one
    sentence each.
    """

    folder: Path
    config: Mapping[str, Any] | None
    status: Status
    results: Mapping[str, Any]
    events: Mapping[str, list[Values]]
    mutations: list[Values]
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The run's experiment and its folder's name, short enough for a title."""
        return f"{self.folder.resolve().parent.name}/{self.folder.resolve().name}"

    @property
    def ended(self) -> str:
        """FINISHED, FAILED, INTERRUPTED or RUNNING; UNKNOWN where it is not written."""
        return self.status.get("status", UNKNOWN)

    def setting(self, key: str, otherwise: Any = None) -> Any:
        """The value of a dotted key of the config; `otherwise` where there is none, or null."""
        value: Any = self.config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return otherwise if value is None else value

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of results.json; nothing where it is not there."""
        return section(self.results, name)

    def series(self, key: str) -> Series:
        """A figure of the metrics over the steps; what is not finite is left out."""
        found: dict[int, float] = {}
        for line in self.events.get("metrics", ()):
            if key in line:
                found.pop(line["step"], None)  # a later line counts, even where it holds null
                if finite(line[key]):
                    found[line["step"]] = float(line[key])
        steps = sorted(found)
        return Series(steps, [found[step] for step in steps])


def read_run(folder: Path | str) -> RunRecord:
    """Read a run's folder, whatever state it is in. Raises nothing."""
    folder = Path(folder).expanduser()
    notes: list[str] = []
    config = config_of(folder)
    if config is None:
        notes.append(_unread(folder / CONFIG, "the run's settings are not known"))
    status, results = read_status(folder), read_results(folder)
    if status is None:
        notes.append(_unread(folder / STATUS, "how the run ended is not known"))
    elif status.get("status") != FINISHED:
        reason = (status.get("error") or "").strip().split("\n")[0]
        because = f" ({reason})" if reason else ""
        notes.append(
            f"The run is {standing(folder, status)}{because}: what it has written is shown."
        )
    if results is None:
        notes.append(_unread(folder / RESULTS, "there are no results"))
    else:
        results = _of_known_types(results, notes)
    doubts = section(results or {}, "data").get("doubts")
    notes += [f"Doubt: {text}." for text in doubts] if isinstance(doubts, list) else []
    events = _events(folder / EVENTS, notes)
    mutations = _mutations(folder / MUTATIONS, events, notes)
    return RunRecord(
        folder, config, status or Status(), results or {}, events, mutations, tuple(notes)
    )


# -- parts -------------------------------------------------------------------------------------


def _unread(path: Path, so: str) -> str:
    what = "cannot be read" if path.exists() else "is missing"
    return f"{path.name} {what}: {so}."


def _of_known_types(results: Values, notes: list[str]) -> dict[str, Any]:
    """`results` without the sections that hold something else than a run writes there."""
    kept = {}
    for key, value in results.items():
        if key in _EVALUATED and isinstance(value, dict):
            # of each list of episodes by itself
            kept[key] = {name: one for name, one in value.items() if _is_evaluation(one)}
            if lost := [name for name in value if name not in kept[key]]:
                notes.append(
                    f"{', '.join(lost)} of {key} in results.json cannot be read: left out."
                )
        elif value is None or (key not in _EVALUATED and _HOLDS.get(key, _anything)(value)):
            kept[key] = value
        else:
            notes.append(f"{key} in results.json cannot be read: left out.")
    return kept


def _anything(value: Any) -> bool:
    return True


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_figures(value: Any) -> bool:
    """Numbers by name; None where one was not measured."""
    return isinstance(value, dict) and all(
        one is None or isinstance(one, (int, float)) or (key == "device" and _is_text(one))
        for key, one in value.items()
    )


def _is_network(value: Any) -> bool:
    """Counts of a network, as far as they are told."""
    if not isinstance(value, dict):
        return False
    counts = [value.get(key) for key in ("blocks", "params", "macs")]
    channels = value.get("channels") or []
    return isinstance(channels, list) and all(
        one is None or finite(one) for one in [*counts, *channels]
    )


def _is_best(value: Any) -> bool:
    differences = value.get("minus_last") or {} if _is_network(value) else None
    return _are_differences(differences) and isinstance(value.get("epoch"), int)


def _is_control(value: Any) -> bool:
    return _is_network(value) and _are_differences(value.get("last_minus") or {})


def _are_differences(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(one, dict) and finite(one.get("mean")) and finite(one.get("ci95"))
        for one in value.values()
    )


def _is_evaluation(one: Any) -> bool:
    return (
        isinstance(one, dict)
        and all(
            one.get(key) is None or finite(one[key]) for key in ("accuracy", "ci95", "episodes")
        )
        and isinstance(one.get("method") or "", str)
        and _are_figures(one.get("top_k") or {})
        and isinstance(one.get("doubts") or [], list)
    )


def _events(path: Path, notes: list[str]) -> dict[str, list[Values]]:
    """The values of every line by kind; of what a resumed run told twice, the later."""
    found: dict[str, list[Values]] = defaultdict(list)
    for line in _lines(path, _is_event, "what happened in training is not known", notes):
        kind, values = line["kind"], line["values"]
        if kind == "finetune":  # older versions had one stage
            values = {"number": 0, **values}
        if kind == "open" and isinstance(values.get("resumed"), Mapping):
            _forget(found, values["resumed"])
        found[kind].append({**values, "step": line["step"]} if kind == "metrics" else values)
    return {kind: _once(kind, lines) for kind, lines in found.items()}


def _forget(found: dict[str, list[Values]], resumed: Values) -> None:
    """Take out what came after the checkpoint that the run then went on from."""
    step, mutations = resumed.get("step"), resumed.get("mutations")
    if finite(step):
        kept = [line for line in found["metrics"] if line["step"] <= step]
        found["metrics"] = kept
    if step == 0:  # there was no checkpoint
        for kind in IDENTITY:
            found.pop(kind, None)
    if finite(mutations):
        for kind in ("mutation", "rollback", "probation"):
            found[kind] = [line for line in found[kind] if line["index"] < mutations]


def _once(kind: str, lines: list[Values]) -> list[Values]:
    if kind not in IDENTITY:
        return lines
    keys = IDENTITY[kind]
    return list({tuple(line[key] for key in keys): line for line in lines}.values())


def _mutations(path: Path, events: Mapping[str, list[Values]], notes: list[str]) -> list[Values]:
    by_index = {
        line["index"]: line
        for line in _lines(path, _is_mutation, "events.jsonl stands in for it", notes)
    }
    # A rollback tells its mutation again.
    told = {
        line["index"]: line for kind in ("mutation", "rollback") for line in events.get(kind, ())
    }
    if told.keys() - by_index.keys() and path.exists():
        notes.append(f"{path.name} lacks mutations that events.jsonl tells of: taken from there.")
    by_index = told | by_index
    if not by_index:
        notes.append("The run has made no mutations.")
    return [by_index[index] for index in sorted(by_index)]


def _lines(
    path: Path, fits: Callable[[Values], bool], without: str, notes: list[str]
) -> Iterator[Values]:
    """The JSON objects of a file, a line each, that `fits` says are whole."""

    def lost(damaged: int) -> None:
        count = "one line" if damaged == 1 else f"{damaged} lines"
        notes.append(f"{count.capitalize()} of {path.name} cannot be read: left out.")

    try:
        yield from salvaged(path, fits, lost)
    except UnreadableError:
        notes.append(_unread(path, without))


def _is_event(line: Values) -> bool:
    if not is_event(line):
        return False
    kind, values = line["kind"], line["values"]
    if kind in ("mutation", "rollback"):
        return _is_mutation(values)
    values = {"number": 0, **values}
    keys = {key: str if key == "intervention" else int for key in IDENTITY.get(kind, ())}
    return all(isinstance(values.get(key), type_) for key, type_ in keys.items())


def _is_mutation(values: Values) -> bool:
    return (
        isinstance(values.get("kind"), str)
        and isinstance(values.get("accepted"), bool)
        and all(isinstance(values.get(key), int) for key in ("index", "epoch", "step"))
        and all(_are_counts(values.get(key)) for key in ("before", "after"))
    )


def _are_counts(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(finite(value.get(key)) for key in ("blocks", "params", "macs"))
        and isinstance(value.get("channels"), list)
        and all(finite(channels) for channels in value["channels"])
    )


def _are_stages(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, dict) and isinstance(one.get("method"), str) for one in value
    )


_EVALUATED = (*SECTIONS.values(), *CLOSED_SECTIONS.values())
_HOLDS: Mapping[str, Callable[[Any], bool]] = {
    "fingerprint": _is_text,
    "status": _is_text,
    "seconds": _are_figures,
    "architecture": _is_network,
    "best": _is_best,
    "control": _is_control,
    "efficiency": _are_figures,
    "images_seen": _are_figures,
    "training_macs": _are_figures,
    "skipped_steps": _are_figures,
    "finetuning": _are_stages,
    "test_views": _are_figures,
    "data": lambda value: isinstance(value, dict),
}
