"""What a person sees: a live bar in a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sseg_nase.finite import finite, positive
from sseg_nase.rundir.results import BEST, LAST, accuracies_of
from sseg_nase.rundir.status import FINISHED
from sseg_nase.tracking.sink import RunInfo, Sink

SECONDS_BETWEEN_UPDATES = 0.2
WIDE = 100  # characters, from which on there is room
TIME_LEFT = "00:00:00 left"
CHANGE = {"change": "+.2f", "change_error": ".2f"}  # of an accuracy, in points


class ConsoleSink(Sink):
    """Messages and progress on standard output; warnings stand out."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self._total_epochs = 0
        self._opened_at = time.monotonic()
        self._first: tuple[float, float] | None = None
        self._last_update = -math.inf
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._lines: dict[str, Callable[[Mapping[str, Any]], str]] = {
            "stage": stage_line,
            "level": level_line,
            "mutation": mutation_line,
            "rollback": mutation_line,
            "finetune": finetune_line,
            "message": lambda values: str(values["text"]),
            "skipped": lambda values: str(values["text"]),
            "warning": lambda values: f"WARNING: {values['text']}",
        }

    def open(self, run: RunInfo) -> None:
        """Say which run this is and where it lies."""
        self._total_epochs = run.total_epochs
        self._opened_at = time.monotonic()
        self._print(f"run {run.name} in {run.directory}")

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Print a line for the kinds people follow; the others are for events.jsonl alone.

        In a terminal the bar stands for the epochs, and ends with the stage.
        """
        if kind == "epoch":
            if not self._console.is_terminal:
                self._print(epoch_line(values, self._total_epochs, self._seconds_left(values)))
            return
        if kind == "stage":
            self._stop_bar()
        if kind in self._lines:
            style = "bold yellow" if kind == "warning" else None
            self._print(self._lines[kind](values), style=style)
        if kind == "mutation" and values.get("measured"):
            self._print(measured_line(values["measured"]))

    def progress(self, epoch: int, step: int, steps: int, values: Mapping[str, Any]) -> None:
        """Move the bar, a few times a second at most."""
        now, position = time.monotonic(), epoch + step / max(steps, 1)
        if self._first is None:
            self._first = (now, position)
        last = epoch + 1 == self._total_epochs and step == steps
        if not self._console.is_terminal or (
            now - self._last_update < SECONDS_BETWEEN_UPDATES and not last
        ):
            return
        self._last_update = now
        described = f"epoch {epoch + 1}/{self._total_epochs}"
        if self._bar is None:
            self._bar = _bar(self._console)
            self._task = self._bar.add_task(described, total=self._total_epochs, figures="")
            self._bar.update(self._task, completed=position)
            self._bar.start()
        room = self._console.width - len(described) - _bar_width(self._console) - len(TIME_LEFT) - 4
        self._bar.update(
            self._task, description=described, completed=position, figures=figures(values, room)
        )

    def close(self, status: str, error: str | None = None) -> None:
        """End the bar and say how the run ended."""
        self._stop_bar()
        # The error itself is said by whoever called the run.
        line = f"{status} after {duration(time.monotonic() - self._opened_at)}"
        self._print(line, style="bold green" if status == FINISHED else "bold red")

    def _print(self, line: str, style: str | None = None) -> None:
        # soft_wrap: a line stays one line, whatever width a pipe is taken to have.
        self._console.print(Text(line, style=style or ""), soft_wrap=True)

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _seconds_left(self, values: Mapping[str, Any]) -> float | None:
        done = int(values["epoch"]) + 1
        if self._first is None or done <= self._first[1]:
            return None
        since, position = self._first
        return (time.monotonic() - since) / (done - position) * (self._total_epochs - done)


def figures(values: Mapping[str, Any], room: float = math.inf) -> str:
    """Return level, loss, blocks, params and images/s, those that `values` has, in one line.

    What does not fit into `room` characters is left out, the speed first and the loss last.
    """
    written: dict[str, Callable[[Any], str]] = {
        "level": str,
        "loss": lambda loss: f"loss {_number(loss, '.4f')}",
        "blocks": lambda blocks: f"{blocks} blocks",
        "params": lambda params: f"params {_count(params)}",
        "images_per_second": lambda speed: f"{_number(speed, ',.0f')} images/s",
    }
    shown = {k: write(values[k]) for k, write in written.items() if values.get(k) is not None}
    for name in ("images_per_second", "blocks", "params", "level", "loss"):
        if len("  ".join(shown.values())) <= room:
            break
        shown.pop(name, None)
    return "  ".join(shown.values())


def epoch_line(values: Mapping[str, Any], total_epochs: int, seconds_left: float | None) -> str:
    """Return the plain line of a finished epoch."""
    line = f"epoch {int(values['epoch']) + 1}/{total_epochs}  {figures(values)}"
    return line if seconds_left is None else f"{line}  {duration(seconds_left)} left"


def stage_line(values: Mapping[str, Any]) -> str:
    """Return the line of a stage's beginning or end."""
    rest = {key: value for key, value in values.items() if key != "stage"}
    return f"stage {values['stage']}" + (f": {_detail(rest)}" if rest else "")


def level_line(values: Mapping[str, Any]) -> str:
    """Return the line of a new level of the curriculum."""
    rest = {key: value for key, value in values.items() if key != "level"}
    return f"LEVEL {values['level']}" + (f": {_detail(rest)}" if rest else "")


def mutation_line(values: Mapping[str, Any]) -> str:
    """Return the line of a mutation, given as one line of mutations.jsonl."""
    before, after, target = values["before"], values["after"], values["target"]
    where = ""
    if "block" in target:
        where = _where(target)
    width = f"channels {'-'.join(map(str, after['channels']))}"
    loss = " -> ".join(_number(values.get(key), ".2f") for key in ("loss_before", "loss_after"))
    return (
        f"{values['kind']}{where}: {after['blocks']} blocks, {width}, "
        f"params {_count(before['params'])} -> {_count(after['params'])}, loss {loss} "
        f"({'accepted' if values['accepted'] else 'rolled back'})"
    )


def _where(target: Mapping[str, Any]) -> str:
    """Which blocks a GROW or WIDEN is about; they count from 1."""
    if target["block"] is not None:
        pooling = " before pooling" if target.get("before_pool") else ""
        return f" block {target['block'] + 1}{pooling}"
    if "blocks" in target:
        return f" blocks {', '.join(str(block + 1) for block in target['blocks'])}"
    return " all blocks"


def finetune_line(values: Mapping[str, Any]) -> str:
    """Say how an epoch of fine-tuning went, and whether its network is the best so far."""
    stage = ""
    if values.get("of", 1) > 1:
        stage = f"{values['number'] + 1} of {values['of']}, {values['method']}, "
    line = (
        f"fine-tuning {stage}epoch {values['epoch'] + 1}/{values['epochs']}: "
        f"loss {_number(values['loss'], '.4f')}, accuracy {_number(values['accuracy'], '.1f')} %, "
        f"val {_number(values['val_accuracy'], '.2f')} ± {_number(values['val_ci95'], '.2f')} %, "
        f"{_number(values['images_per_second'], ',.0f')} images/s"
    )
    return f"{line}, the best so far" if values["best"] else line


def measured_line(values: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the line of what a pruning has cost and given."""
    accuracy, latency = values["accuracy"], values["latency"]
    times = " -> ".join(_milliseconds(latency[key]) for key in ("before_ms", "after_ms"))
    shares = " -> ".join(_number(accuracy[key], ".2f") for key in ("before", "after"))
    change, error = (_number(accuracy[key], form) for key, form in CHANGE.items())
    removed = accuracy.get("removed")
    alone = "" if removed is None else f", removed channels alone {_number(removed, '.2f')} %"
    return (
        f"latency at batch {latency['batch']}: {times} ms; held episodes: {shares} % "
        f"({change} ± {error}){alone}"
    )


def summary_table(
    results: Mapping[str, Any], mutations: Sequence[Mapping[str, Any]], ui_command: str | None
) -> Group:
    """Return the closing table of a run, a column per network, and what is said below it.

    `results` is results.json, `mutations` the lines of mutations.jsonl. First stands the network
    with the lowest loss, where there is one, then the last one, then the untrained seed network,
    all on the same episodes or images. `print_summary` prints it with the command
    that opens the UI kept on one line.
    """
    networks = networks_of(results)
    table = Table(title=f"{results.get('status', '')} {results.get('fingerprint', '')}".strip())
    table.add_column("")
    for name in networks:
        table.add_column(name, justify="right")
    keys = dict.fromkeys(key for lists, _ in networks.values() for key in lists)
    for key in keys:
        table.add_row(key, *(_accuracy(lists.get(key)) for lists, _ in networks.values()))
    rows = [dict(_network_rows(costs)) for _, costs in networks.values()]
    for name in dict.fromkeys(name for row in rows for name in row):
        table.add_row(name, *(row.get(name, "") for row in rows))
    said = [_protocol(one) for lists, _ in networks.values() for one in lists.values()]
    table.caption = "; ".join(dict.fromkeys(said)) or None
    lines = [*better(results), *gained(results), f"mutations accepted: {_mutations(mutations)}"]
    seen = results.get("images_seen") or {}
    counts = [f"{_count(n)} {name.replace('_', ' ')}" for name, n in seen.items() if n]
    lines.append(f"images seen: {', '.join(counts) or '0'}")
    if spent := results.get("training_macs"):
        lines.append(f"training: {_spent(spent)}")
    if seconds := results.get("seconds"):
        took = ", ".join(f"{stage} {duration(took)}" for stage, took in seconds.items())
        lines.append(f"time: {took}")
    shown = [table] if networks else []
    if ui_command is not None:
        # A line of its own is copied whole, and at 80 columns mostly not broken.
        lines += ["compare runs:", ui_command]
    return Group(*shown, *(Text(line) for line in lines))


def _protocol(one: Mapping[str, Any]) -> str:
    """What a network was evaluated on, and how: episodes, or the images of a closed set."""
    if "episodes" not in one:
        return f"{one['images']:,} images, {one['method']}"
    way = "transductive" if one["transductive"] else "inductive"
    return f"{one['episodes']} episodes, {one['method']}, {way}"


def _spent(macs: Mapping[str, int]) -> str:
    """Multiply-accumulates of a training in all, and the shares of what they were spent on."""
    parts = {part: count for part, count in macs.items() if part != "total"}
    shares = ", ".join(f"{part} {count / macs['total']:.1%}" for part, count in parts.items())
    return f"{macs['total'] / 1e12:,.3g} T multiply-accumulates{f': {shares}' if shares else ''}"


def networks_of(
    results: Mapping[str, Any],
) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return the networks of results.json by name: accuracies, and size with costs.

    The network that was chosen by its loss, without labels, stands first. Where it is also the
    last one there is one column for both.
    """
    last = {**(results.get("efficiency") or {}), **(results.get("architecture") or {})}
    fewshot, best = accuracies_of(results, LAST), accuracies_of(results, BEST)
    about = results.get("best") or {}
    found: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    if best and best == fewshot and about.get("params") == last.get("params"):
        found["best and last"] = (best, last)
    elif best:
        found["best"] = (best, {**about, "resolution": last.get("resolution")})
    if fewshot and "best and last" not in found:
        found["last" if best else "this run"] = (fewshot, last)
    if views := accuracies_of(results, "views"):
        told = results.get("test_views") or {}
        costs = {**last, "macs": told.get("macs", last.get("macs"))}
        kept = ("macs", "resolution", "params")
        costs = {key: costs[key] for key in kept if key in costs}
        found[f"{told.get('views', 'several')} views"] = (views, costs)
    if control := accuracies_of(results, "control"):
        found["control"] = (control, results.get("control") or {})
    if untrained := accuracies_of(results, "untrained"):
        found["untrained"] = (untrained, {})
    return found


def _units(one: Mapping[str, Any] | None) -> str:
    """What an accuracy is the mean of."""
    return "images" if one is not None and "images" in one else "episodes"


def better(results: Mapping[str, Any]) -> list[str]:
    """Return what sets the best network apart from the last one, in sentences."""
    about = results.get("best") or {}
    if not about or not accuracies_of(results, BEST):
        return []
    lines = [
        f"best: lowest loss at the latest level, after epoch {about['epoch'] + 1}, chosen without "
        "labels"
    ]
    if "best and last" in networks_of(results):
        return lines
    for key, one in (about.get("minus_last") or {}).items():
        mean, ci95 = one["mean"], one["ci95"]
        units = _units(accuracies_of(results, LAST).get(key))
        sure = "" if abs(mean) > ci95 else f", no difference that these {units} show"
        lines.append(
            f"best minus last, {key}: {mean:+.2f} ± {ci95:.2f} points on the same {units}{sure}"
        )
    return lines


def gained(results: Mapping[str, Any]) -> list[str]:
    """Return what evolution gave over the run's control, in sentences."""
    about, own = results.get("control") or {}, results.get("training_macs") or {}
    if not about or not accuracies_of(results, "control"):
        return []
    costs = [own.get("total"), about.get("training_macs")]
    told = [f"{cost / 1e12:,.3g} T" if cost and positive(cost) else "unknown" for cost in costs]
    lines = [
        "control: the network at the start, trained once more on the same images for as many steps "
        f"without mutations; multiply-accumulates of training: {told[0]} with them, {told[1]} "
        "without"
    ]
    for key, one in (about.get("last_minus") or {}).items():
        mean, ci95 = one["mean"], one["ci95"]
        units = _units(accuracies_of(results, LAST).get(key))
        sure = "" if abs(mean) > ci95 else f", no difference that these {units} show"
        lines.append(
            f"last minus control, {key}: {mean:+.2f} ± {ci95:.2f} points on the same {units}{sure}"
        )
    return lines


def print_summary(
    results: Mapping[str, Any],
    mutations: Sequence[Mapping[str, Any]],
    ui_command: str | None,
    console: Console | None = None,
) -> None:
    """Print `summary_table` on standard output (or `console`), the command ready to be copied."""
    shown = summary_table(results, mutations, ui_command)
    (console or Console(highlight=False)).print(shown, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return seconds as `m:ss` or `h:mm:ss`; below ten seconds with one decimal."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _network_rows(network: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The rows of one network: those of its size and costs that are known."""
    rows = []
    if (channels := network.get("channels")) is not None:
        width = "-".join(map(str, channels)) if isinstance(channels, list | tuple) else channels
        rows += [("blocks", str(network["blocks"])), ("channels", str(width))]
    if "params" in network:
        rows += [
            ("params", _count(network["params"])),
            (f"MACs at {network['resolution']} px", _count(network["macs"])),
        ]
    for batch in (1, 64):
        if positive(latency := network.get(f"latency_ms_b{batch}")):
            rows.append((f"latency, batch {batch}", f"{_milliseconds(latency)} ms"))
    if (memory := network.get("peak_memory_mb")) is not None:
        rows.append(("peak memory", f"{_number(memory, ',.1f')} MB"))
    return rows


def _mutations(mutations: Sequence[Mapping[str, Any]]) -> str:
    accepted = Counter(str(mutation["kind"]) for mutation in mutations if mutation["accepted"])
    shown = ", ".join(f"{count} {kind}" for kind, count in accepted.items()) or "none"
    rejected = len(mutations) - sum(accepted.values())
    return f"{shown} ({rejected} rolled back)" if rejected else shown


def _accuracy(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return ""
    return f"{_number(result['accuracy'], '.2f')} ± {_number(result['ci95'], '.2f')} %"


def _bar_width(console: Console) -> int:
    return 20 if console.width >= WIDE else 8


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=_bar_width(console)),
        TextColumn("{task.fields[figures]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        refresh_per_second=4,
        transient=True,
    )


def _detail(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {_number(value, '.4g') if isinstance(value, float) else value}"
        for key, value in values.items()
    )


def _count(value: Any) -> str:
    return f"{int(value):,}"


def _milliseconds(value: Any) -> str:
    """Never as 0: what is short gets more digits."""
    if not positive(value):
        return "-"
    return f"{value:.2f}" if value >= 0.01 else f"{value:.2g}"


def _number(value: Any, form: str) -> str:
    return format(value, form) if finite(value) else "-"
