"""The report of one run, from nothing but its folder: Markdown, HTML, LaTeX, CSV, JSON, figures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from sseg_nase.config.commands import command as command_line
from sseg_nase.config.compose import defaults
from sseg_nase.config.fingerprint import decisive, flatten
from sseg_nase.config.members import upgraded
from sseg_nase.errors import UserError
from sseg_nase.files import write_json, write_text
from sseg_nase.finite import finite, plain
from sseg_nase.kinds import kinds
from sseg_nase.reporting import closed_sets
from sseg_nase.reporting.comparison import Comparison, compare
from sseg_nase.reporting.comparison_tables import (
    PUBLISHED,
    in_units,
    measured_block,
    published_blocks,
)
from sseg_nase.reporting.document import (
    LEFT,
    NOTHING,
    Block,
    Bold,
    Code,
    Column,
    Document,
    Facts,
    Heading,
    Items,
    Listing,
    Notice,
    Paragraph,
    Picture,
    Row,
    Table,
    Text,
    as_csv,
    framed,
)
from sseg_nase.reporting.export import epochs_frame, mutations_frame, results_frame, results_of
from sseg_nase.reporting.html import as_html
from sseg_nase.reporting.latex import as_latex, preview
from sseg_nase.reporting.markdown import as_markdown
from sseg_nase.reporting.origin import made
from sseg_nase.reporting.pictures import drawn, files_of
from sseg_nase.reporting.provenance import provenance
from sseg_nase.reporting.run_summary import in_words, summary
from sseg_nase.rundir.config import read_overrides
from sseg_nase.rundir.environment import read_environment
from sseg_nase.rundir.events import span
from sseg_nase.rundir.names import ENVIRONMENT, RESULTS
from sseg_nase.rundir.record import RunRecord, read_run
from sseg_nase.rundir.results import (
    EpisodeResult,
    accuracies_of,
    class_results,
    doubts_of,
    section,
)
from sseg_nase.rundir.status import FINISHED, standing
from sseg_nase.tracking.console import better
from sseg_nase.tracking.mlflow_sink import shown
from sseg_nase.version import __version__

NAME = "report"
LAST, BEST = "last", "best"
SAME_SETTINGS = (
    "the same settings; the same result only on the same kind of machine, with the same versions, "
    "threads, code and images"
)
MEANING = {
    "untrained": "before any training",
    "pretrained": "before fine-tuning",
    "best": "with the lowest training loss at the latest level, chosen without any labels",
    "last": "at the end of training, or what fine-tuning has chosen",
    "control": "the network at the start, trained as the run was, but without mutations",
    "views": "the same, by the mean embedding of several views of every image",
}
COSTS = (
    ("params", "parameters", ",.0f"),
    ("macs", "multiply-accumulates (MACs)", ",.0f"),
    ("flops", "FLOPs (2 × MACs)", ",.0f"),
    ("latency_ms_b1", "latency of one image (ms)", ".3f"),
    ("latency_ms_b64", "latency of 64 images (ms)", ".3f"),
    ("peak_memory_mb", "peak memory of one image (MB)", ".2f"),
)
IMAGES = {
    "synthetic": "drawn",
    "real_unlabeled": "real, without labels",
    "real_labeled": "real, with labels",
}
OUTSIDE_GIT = "not known: the code is not in a git checkout"


class Differing(NamedTuple):
    """A key of the config with a value that is not the default; `decides`: the result."""

    key: str
    default: str
    value: str
    decides: bool


def write_report(run: Path, folder: Path | None = None, *, published: bool = True) -> list[Path]:
    """Write the report of the run in `run` to `folder` (its own `report/`), and return the files.

    `report.md`, `report.html`, `results.tex` and `preview.tex`, `results.csv`, `mutations.csv`,
    `epochs.csv`, `results.json`, and `figures/`. What the run lacks is said in its place.
    `published`: with published figures on the same data set. Raises `OSError` where `folder`
    cannot be written.
    """
    from sseg_nase.reporting.figures import figures_of_run

    folder = run / NAME if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    record = read_run(run)
    pictures = drawn(figures_of_run(record), folder)
    whole = document(record, pictures, published=published)
    results = results_of(record)
    texts = {
        "report.md": as_markdown(whole, folder),
        "report.html": as_html(whole),
        "results.tex": as_latex(latex(record, results)),
        "preview.tex": preview(["results.tex"]),
        "results.csv": as_csv(results_frame(results)),
        "mutations.csv": as_csv(mutations_frame(record)),
        "epochs.csv": as_csv(epochs_frame(record)),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / RESULTS, as_json(record, results))
    return [folder / name for name in [*texts, RESULTS]] + files_of(pictures)


def document(
    record: RunRecord, pictures: Sequence[Picture] = (), *, published: bool = True
) -> Document:
    """The report as a document: the answers first, then what they rest on."""
    results = results_of(record)
    known = compare([record.folder]) if published and results else None
    large = [picture for picture in pictures if not picture.small]
    figures: list[Block] = [Heading(2, "Figures"), *large] if large else []
    blocks: list[Block] = [
        *_unfinished(record),
        *summary(record, results, known),
        *(picture for picture in pictures if picture.small),
        *_headline(record),
        *_results(record, results, known),
        *_efficiency(record),
        *figures,
        *_mutations(record),
        *_config(record),
        *_environment(record),
        *_notes(record),
    ]
    return Document(_title(record), blocks)


def as_json(record: RunRecord, results: Sequence[EpisodeResult]) -> dict[str, Any]:
    """What the report says, for programs; what is not known is null."""
    began, ended = span(record.folder)
    try:
        differing = differing_from_defaults(record)
    except UserError:
        differing = None
    about: dict[str, Any] = {
        "schema": 1,
        "run": str(record.folder.absolute()),
        "status": record.ended,
        "began": began,
        "ended": ended,
        "fingerprint": _fingerprint(record),
        "command": command(record),
        "results": [one._asdict() for one in results],
        "efficiency": record.section("efficiency"),
        "architecture": record.section("architecture"),
        "images_seen": record.section("images_seen"),
        "seconds": record.section("seconds"),
        "mutations": record.mutations,
        "differs_from_defaults": None
        if differing is None
        else {one.key: {"default": one.default, "value": one.value} for one in differing},
        "environment": read_environment(record.folder),
        "notes": record.notes,
    }
    found: dict[str, Any] = plain(about)
    return found


# -- headline ----------------------------------------------------------------------------------


def _title(record: RunRecord) -> str:
    name = _opened(record).get("name") or record.folder.resolve().name
    experiment = record.setting("experiment_name")
    return f"{experiment}: {name}" if experiment and experiment not in name else str(name)


def _unfinished(record: RunRecord) -> Iterator[Block]:
    if record.ended != FINISHED:
        reason = str(record.status.get("error") or "").strip().split("\n")[0]
        because = f": {reason}" if reason else ""
        stands = standing(record.folder, record.status)
        yield Notice((f"This run is {stands}{because}. What it has written is shown.",))


def _headline(record: RunRecord) -> Iterator[Block]:
    yield Facts(list(_facts(record)))
    if said := better(record.results):
        yield Items([f"{line[0].upper()}{line[1:]}." for line in said])
    if (again := command(record)) is not None:
        yield Paragraph("Once more:")
        yield Listing(again)
    else:
        yield Notice("The command is not known: there is no overrides.yaml that can be read.")


def _facts(record: RunRecord) -> Iterator[tuple[str, Text]]:
    if record.config is not None:
        origin = provenance(record.folder, record.results)
        data = record.setting("dataset.name", NOTHING)
        size = record.setting("dataset.image_size", NOTHING)
        yield "What", f"{origin.method}, {origin.shown}, on {data} ({size} px)"
    if (task := record.setting("task", "pipeline")) != "pipeline":
        yield "Task", str(task)
    yield "Status", Bold(record.ended)
    closed = class_results(record.results, (BEST, LAST))
    for key in dict.fromkeys(one.key for one in closed):
        said = [f"{closed_sets.accuracy(each)} % ({each.network})" for each in closed]
        yield key, "; ".join(said)
    networks_evaluated = {one.network for one in results_of(record)}
    networks_evaluated |= {one.network for one in closed}
    best = record.section("best") if BEST in networks_evaluated else {}
    networks = {BEST: best, LAST: record.section("architecture")}
    sizes = {name: _size(network) for name, network in networks.items() if network}
    if len(set(sizes.values())) == 2:
        yield "Networks", "; ".join(f"{name}: {size}" for name, size in sizes.items())
    elif sizes:
        yield "Network", next(iter(sizes.values()))
    if tuned := "; ".join(map(_stage, record.results.get("finetuning", ()))):
        yield "Fine-tuning", tuned
    if (line := made([record.folder], record.section("seconds"))) is not None:
        yield "Made", line
    yield "Seed", str(record.setting("seed", NOTHING))
    if (fingerprint := _fingerprint(record)) is not None:
        yield "Fingerprint", (Code(fingerprint), f": {SAME_SETTINGS}")
    yield "Folder", Code(record.folder.absolute())
    yield "MLflow", _tracked(record)


def _stage(told: Mapping[str, Any]) -> str:
    """A stage of fine-tuning: how long it trained, and which network it has chosen."""
    epochs, best = told.get("epochs"), told.get("best_epoch")
    words = f"{told['method']}, {_figure(epochs, ',.0f')} epochs"
    if finite(best) and finite(told.get("val_accuracy")):
        on = "images" if "labelled_images" in told else "episodes"
        words += f" (chosen after {best + 1:,.0f}, {told['val_accuracy']:.2f} % on val {on})"
    return words


def _size(network: Mapping[str, Any]) -> str:
    params = f"{_figure(network.get('params'), ',.0f')} parameters"
    if "channels" not in network:
        return params
    channels = network["channels"]
    width = "-".join(map(str, channels)) if isinstance(channels, list) else str(channels)
    return f"{network.get('blocks')} blocks, channels {width or NOTHING}, {params}"


def _tracked(record: RunRecord) -> Text:
    uri, run_id = record.status.get("tracking_uri"), record.status.get("tracker_run_id")
    if not uri or not run_id:
        return "this run has none"
    return (Code(run_id), " at ", Code(shown(str(uri))))


def command(record: RunRecord) -> str | None:
    """What does the run once more; None where its overrides cannot be read."""
    overrides = read_overrides(record.folder)
    return None if overrides is None else command_line(*overrides)


def _opened(record: RunRecord) -> Mapping[str, Any]:
    """What the run said of itself when it opened."""
    return next(iter(record.events.get("open", ())), {})


def _fingerprint(record: RunRecord) -> str | None:
    found = record.results.get("fingerprint")
    if found is None:
        found = (_opened(record).get("tags") or {}).get("fingerprint")
    return None if found is None else str(found)


# -- results -----------------------------------------------------------------------------------


def _results(
    record: RunRecord, results: Sequence[EpisodeResult], known: Comparison | None
) -> Iterator[Block]:
    yield Heading(2, "Results")
    if class_results(record.results):
        yield from closed_sets.blocks(record)
        return
    if not results:
        yield Notice("There are no few-shot accuracies: the run has not evaluated a network yet.")
        return
    for transductive in dict.fromkeys(one.transductive for one in results):
        evaluated = [one for one in results if one.transductive == transductive]
        yield Heading(3, "Transductive" if transductive else "Inductive")
        episodes, network, accuracy, n, method = _result_columns("accuracy ± 95 % CI (%)")
        tops = [
            Column(f"top-{k} (%)", partial(_top, k))
            for k in sorted({k for one in evaluated for k in one.top_k}, key=str)
        ]
        yield Table(results_frame(evaluated), [episodes, network, accuracy, n, *tops, method])
    networks = dict.fromkeys(one.network for one in results)
    yield Items([(Bold(name), f": {MEANING[name]}") for name in networks])
    yield Paragraph(
        "Mean accuracy over n episodes, ± 1.96·s/√n. It covers other episodes of the same classes, "
        "but no other seeds; nothing is bold, because one run compares with nothing."
    )
    if known is not None:
        yield from _published(known)


def _result_columns(accuracy: str) -> list[Column]:
    return [
        Column("episodes", lambda row: in_words(row["key"]), LEFT),
        Column("network", itemgetter("network"), LEFT),
        Column(accuracy, _accuracy),
        Column("n", lambda row: _figure(row["episodes"], ",")),
        Column("method", itemgetter("method"), LEFT),
    ]


def _top(k: str, row: Row) -> str:
    return _figure(json.loads(row["top_k"] or "{}").get(k), ".2f")


def _published(known: Comparison) -> Iterator[Block]:
    """What is known of the same data set, and of the same method and network on it."""
    beside = [table for table in known.tables if any(row.published for row in table.rows)]
    if not beside and not known.alone:
        return
    yield Heading(2, "Beside published figures")
    for table in beside:
        yield measured_block(table)
    for block in published_blocks(known):
        yield Heading(block.level + 1, block.text) if isinstance(block, Heading) else block
    yield Paragraph(PUBLISHED)


def latex(record: RunRecord, results: Sequence[EpisodeResult]) -> list[Table]:
    """The results and the costs for a paper; inductive and transductive ones apart."""
    tables = []
    about = str(record.setting("experiment_name", record.folder.name))
    for transductive in dict.fromkeys(one.transductive for one in results):
        evaluated = [one for one in results if one.transductive == transductive]
        kind = "transductive" if transductive else "inductive"
        tables.append(
            Table(
                results_frame(evaluated),
                _result_columns("accuracy"),
                f"{about}: accuracy in % ± 95 % CI over n episodes, {kind}.",
                ["One run: the intervals cover other episodes, but no other seeds."],
                [n for n, one in enumerate(evaluated) if n and one.key != evaluated[n - 1].key],
            )
        )
    if costs := _costs(record, f"{about}: {_of_what(record)}."):
        tables.append(costs)
    return tables


def _accuracy(result: Row) -> str:
    return f"{result['accuracy']:.2f} ± {_figure(result['ci95'], '.2f')}"


# -- efficiency --------------------------------------------------------------------------------


def _efficiency(record: RunRecord) -> Iterator[Block]:
    yield Heading(2, "Efficiency")
    if costs := _costs(record):
        yield costs
        yield Paragraph(f"{_of_what(record)}, without heads.")
    else:
        yield Notice("There are no figures of size and speed: the run has not come to that.")
    images = record.section("images_seen")
    if seen := [(IMAGES[key], f"{images[key]:,}") for key in IMAGES if finite(images.get(key))]:
        yield Paragraph("Images seen in training:")
        yield Facts(seen)
    spent = record.section("training_macs")
    if shares := [(part, _spent(count, spent)) for part, count in spent.items() if finite(count)]:
        yield Paragraph("Multiply-accumulates of the training:")
        yield Facts(shares)


def _spent(count: float, spent: Mapping[str, Any]) -> str:
    total = spent.get("total")
    share = f" ({count / total:.1%})" if finite(total) and 0 < total != count else ""
    return f"{count:.3g}{share}"


def _costs(record: RunRecord, caption: str = "") -> Table | None:
    """What the networks cost, a row per cost; without those that no network has told."""
    networks = {
        "at the start": record.mutations[0]["before"] if record.mutations else {},
        "best": record.section("best"),
        "last": record.section("efficiency"),
    }
    networks = {name: costs for name, costs in networks.items() if costs}
    rows = [
        # None of these can be 0; an older version may have read so from a coarse clock.
        {"cost": name, "form": form} | {n: costs.get(key) or None for n, costs in networks.items()}
        for key, name, form in COSTS
        if "last" in networks and any(finite(costs.get(key) or None) for costs in networks.values())
    ]
    if not rows:
        return None

    def shows(network: str) -> Callable[[Row], Text]:
        return lambda row: _figure(row[network], row["form"])

    columns = [Column("", itemgetter("cost"), LEFT)]
    columns += [Column(name, shows(name)) for name in networks]
    return Table(framed(rows, ["cost", "form", *networks]), columns, caption)


def _of_what(record: RunRecord) -> str:
    costs = record.section("efficiency")
    return f"The backbone at {costs.get('resolution', '?')} px on {costs.get('device', '?')}"


# -- mutations ---------------------------------------------------------------------------------


def _mutations(record: RunRecord) -> Iterator[Block]:
    yield Heading(2, "Mutations")
    if not record.mutations:
        yield Notice(_why_no_mutations(record))
        return
    yield Table(mutations_frame(record), _mutation_columns())
    yield Paragraph(
        "Epochs and blocks count from 1. All of it is before → after; losses (nats) are of the "
        "same held batches. Function delta: how far the projections of one of them moved, "
        "‖f′ − f‖ / ‖f‖. More is in mutations.csv."
    )
    yield from _prunings(record)


def _prunings(record: RunRecord) -> Iterator[Block]:
    """What every PRUNE has cost and given."""
    ended = {line["index"]: line for line in record.events.get("probation", ())}
    rows = [
        _pruning(one, ended.get(one["index"], {}))
        for one in record.mutations
        if isinstance(one.get("measured"), Mapping)
    ]
    if not rows:
        return
    yield Paragraph("What every PRUNE has cost and given:")
    columns = [
        Column("#", lambda row: str(row["index"])),
        Column("held episodes (%)", partial(_turned, "accuracy", ".2f")),
        Column("change (points)", partial(_with_error, "change")),
        Column("at the end of probation (points)", partial(_with_error, "ended")),
        Column("removed channels alone (%)", lambda row: _figure(row["removed"], ".2f")),
        Column("undecided", lambda row: _figure(row["undecided"], ".0f")),
        Column("latency (ms)", partial(_turned, "ms", ".2f")),
        Column("batch", lambda row: _figure(row["batch"], ".0f")),
    ]
    yield Table(framed(rows, list(rows[0])), columns)
    yield Paragraph(
        "Held episodes: 5-way 1-shot on held images without their labels, every image a class of "
        "its own, one view its support and another its query; ± the standard error of the paired "
        "difference. At the end of probation the pruned network is compared with the one that was "
        "not pruned. Undecided: removed channels whose importance does not lie below that of the "
        "least kept one of their block by two standard errors."
    )


def _pruning(one: Mapping[str, Any], ended: Mapping[str, Any]) -> dict[str, Any]:
    accuracy, latency = (section(one["measured"], key) for key in ("accuracy", "latency"))
    trigger = one.get("trigger")
    return {
        "index": one["index"],
        "accuracy_before": accuracy.get("before"),
        "accuracy_after": accuracy.get("after"),
        "change": accuracy.get("change"),
        "change_error": accuracy.get("change_error"),
        "ended": ended.get("accuracy_change"),
        "ended_error": ended.get("accuracy_change_error"),
        "removed": accuracy.get("removed"),
        "undecided": trigger.get("undecided") if isinstance(trigger, Mapping) else None,
        "ms_before": latency.get("before_ms"),
        "ms_after": latency.get("after_ms"),
        "batch": latency.get("batch"),
    }


def _turned(key: str, form: str, row: Row) -> str:
    """A figure before and after."""
    return " → ".join(_figure(row[f"{key}_{when}"], form) for when in ("before", "after"))


def _with_error(key: str, row: Row) -> str:
    error = row[f"{key}_error"]
    if not finite(error):
        return NOTHING
    return f"{_figure(row[key], '+.2f')} ± {_figure(error, '.2f')}"


def _why_no_mutations(record: RunRecord) -> str:
    if not record.setting("evolution.enabled") and not record.setting("sparsity.enabled"):
        return "There are none: neither evolution nor sparsity is switched on."
    reasons = [str(line.get("reason")) for line in record.events.get("decision", ())]
    last = f" The last decision was: {reasons[-1]}." if reasons else ""
    return f"There are none.{last}"


def _mutation_columns() -> list[Column]:
    """Of mutations.csv, where what has parts is JSON text."""

    def turned(key: str, show: Callable[[Any], str]) -> Callable[[Row], Text]:
        return lambda row: f"{show(row[f'before_{key}'])} → {show(row[f'after_{key}'])}"

    def losses(row: Row) -> Text:
        return " → ".join(_figure(row[f"loss_{when}"], ".3f") for when in ("before", "after"))

    def outcome(row: Row) -> Text:
        return "accepted" if row["accepted"] else Bold("rolled back")

    def why(row: Row) -> Text:
        trigger = _read(row["trigger"])
        return str(trigger.get("reason", NOTHING)) if isinstance(trigger, Mapping) else NOTHING

    return [
        Column("#", lambda row: str(row["index"])),
        Column("after epoch", lambda row: str(row["epoch"] + 1)),
        Column("kind", itemgetter("kind"), LEFT),
        Column("what", lambda row: _target(row["kind"], _read(row["target"])), LEFT),
        Column("channels", turned("channels", _channels), LEFT),
        Column("params", turned("params", in_units)),
        Column("MACs", turned("macs", in_units)),
        Column("loss", losses),
        Column("function delta", lambda row: _figure(row["function_delta"], ".2g")),
        Column("outcome", outcome, LEFT),
        Column("why", why, LEFT),
    ]


def _read(cell: Any) -> Any:
    """What a cell of mutations.csv holds."""
    try:
        return json.loads(cell) if isinstance(cell, str) else cell
    except ValueError:
        return cell


def _channels(text: str) -> str:
    return "-".join(str(channels) for channels in json.loads(text))


def _target(kind: str, target: Any) -> str:
    """What a mutation has changed, in words."""
    if not isinstance(target, Mapping):
        return NOTHING
    known = kinds().get(kind)
    return json.dumps(target) if known is None else known.describe(target)


# -- config and environment --------------------------------------------------------------------


@cache
def _defaults() -> Mapping[str, Any]:
    return flatten(dataclasses.asdict(defaults()))


def differing_from_defaults(record: RunRecord) -> list[Differing] | None:
    """The keys whose values are not those of `conf/` without any override.

    None where the run's config is not known. What only one of the two has is shown as missing.
    Raises `UserError` where the defaults cannot be composed.
    """
    if record.config is None:
        return None
    usual = _defaults()
    given = flatten(upgraded(record.config))
    keys = list(dict.fromkeys([*usual, *given]))
    decides = decisive(dict.fromkeys(keys))
    return [
        Differing(key, _value(usual, key), _value(given, key), key in decides)
        for key in keys
        if key not in usual or key not in given or usual[key] != given[key]
    ]


def _value(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return NOTHING
    value = values[key]
    return value if isinstance(value, str) else json.dumps(value)


def _config(record: RunRecord) -> Iterator[Block]:
    yield Heading(2, "Config")
    try:
        differing = differing_from_defaults(record)
    except UserError as error:  # an environment variable of the defaults, say
        yield Notice(f"The defaults cannot be composed here: {error}")
        return
    if differing is None:
        yield Notice("The config is not known: there is no config.yaml that can be read.")
        return
    sorts = {
        "What decides the result and differs from the defaults": True,
        "What differs, but only in names, places and speed": False,
    }
    for name, decides in sorts.items():
        yield Heading(3, name)
        rows = [one._asdict() for one in differing if one.decides == decides]
        if rows:
            columns = [
                Column("key", lambda row: Code(row["key"]), LEFT),
                Column("default", lambda row: _typed(row["default"]), LEFT),
                Column("this run", lambda row: _typed(row["value"]), LEFT),
            ]
            yield Table(framed(rows, Differing._fields), columns)
        else:
            yield Paragraph("Nothing.")
    yield Paragraph(
        (
            "The defaults are those of version ",
            __version__,
            "; ",
            Code("hardware.*"),
            " is what the run has found on its machine where the default leaves it open. The whole "
            "config is config.yaml in the run's folder.",
        )
    )


def _typed(value: str) -> str:
    return value if value == NOTHING else Code(value)


def _environment(record: RunRecord) -> Iterator[Block]:
    yield Heading(2, "Environment")
    found = read_environment(record.folder)
    if found is None:
        yield Notice(
            f"The environment is not known: there is no {ENVIRONMENT} that can be read (older "
            "versions wrote none)."
        )
        return
    yield Facts(list(_surroundings(found)))
    earlier = found.get("earlier")
    for number, one in enumerate(earlier if isinstance(earlier, list) else (), start=1):
        if isinstance(one, dict):
            yield Heading(3, f"Before it was resumed ({number})")
            yield Facts(list(_surroundings(one)))


def _surroundings(found: Mapping[str, Any]) -> Iterator[tuple[str, Text]]:
    packages = found.get("packages")
    versions = packages.items() if isinstance(packages, dict) else ()
    yield (
        "Versions",
        ", ".join([f"Python {found.get('python')}", *(f"{n} {v}" for n, v in versions)]),
    )
    cores, threads = found.get("cores"), found.get("threads")
    yield "Processor", f"{found.get('processor')}; {cores} cores, {threads} threads used"
    yield "GPU", f"{found['gpu']}, CUDA {found.get('cuda')}" if found.get("gpu") else "none"
    if found.get("memory_gb") is not None:
        yield "Memory", f"{found['memory_gb']} GB"
    yield "System", str(found.get("platform"))
    stated = found.get("code")
    code: Mapping[str, Any] = stated if isinstance(stated, dict) else {}
    commit = code.get("commit")
    if commit is None:
        yield "Code", OUTSIDE_GIT
    else:
        changed = ", with changes that are not in it" if code.get("changed") else ""
        yield "Code", ("commit ", Code(commit), changed)


def _notes(record: RunRecord) -> Iterator[Block]:
    notes = (*record.notes, *_of_skipped_steps(record), *_of_accuracies(record))
    if notes:
        yield Heading(2, "Notes")
        yield Items(notes)


def _of_skipped_steps(record: RunRecord) -> Iterator[str]:
    for what, steps in record.section("skipped_steps").items():
        yield f"{what}: {steps} steps were skipped, because their gradients overflowed float16."


def _of_accuracies(record: RunRecord) -> Iterator[str]:
    """What is to be said of the accuracies, a sentence each."""
    for network in (LAST, BEST):
        for key, result in accuracies_of(record.results, network).items():
            about = f"{key}, {network} network"
            if not isinstance(result, dict) or not finite(result.get("accuracy")):
                yield f"{about}: results.json holds no accuracy: left out."
                continue
            for doubt in doubts_of(result):
                yield f"{about}: the accuracy means little, because {doubt}."


def _figure(value: Any, form: str) -> str:
    return format(value, form) if finite(value) and not math.isnan(value) else NOTHING
