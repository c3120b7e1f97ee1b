"""The report of one run, from nothing but its folder: Markdown, HTML, LaTeX, CSV, JSON, figures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
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
from sseg_nase.reporting.comparison import compare
from sseg_nase.reporting.comparison_tables import (
    PUBLISHED,
    in_units,
    measured_block,
    published_blocks,
)
from sseg_nase.reporting.document import (
    LEFT,
    NOTHING,
    RIGHT,
    Block,
    Bold,
    Code,
    Document,
    Facts,
    Heading,
    Items,
    Listing,
    Notice,
    Paragraph,
    Picture,
    Table,
    Text,
)
from sseg_nase.reporting.export import (
    EPOCH_COLUMNS,
    MUTATION_COLUMNS,
    RESULT_COLUMNS,
    as_csv,
    epoch_lines,
    mutation_lines,
    result_lines,
    results_of,
)
from sseg_nase.reporting.html import as_html
from sseg_nase.reporting.latex import LatexTable, as_latex, preview
from sseg_nase.reporting.markdown import as_markdown
from sseg_nase.reporting.pictures import drawn, files_of
from sseg_nase.reporting.provenance import provenance
from sseg_nase.rundir.config import read_overrides
from sseg_nase.rundir.environment import read_environment
from sseg_nase.rundir.events import span
from sseg_nase.rundir.names import ENVIRONMENT, RESULTS
from sseg_nase.rundir.record import RunRecord, read_run
from sseg_nase.rundir.results import (
    EpisodeResult,
    class_results,
    doubts_of,
    judged,
    section,
)
from sseg_nase.rundir.status import FINISHED, standing
from sseg_nase.tracking.console import better, duration, gained
from sseg_nase.tracking.mlflow_sink import shown
from sseg_nase.version import __version__

NAME = "report"
UNTRAINED, LAST, BEST = "untrained", "last", "best"
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
        "results.csv": as_csv(RESULT_COLUMNS, result_lines(results)),
        "mutations.csv": as_csv(MUTATION_COLUMNS, mutation_lines(record)),
        "epochs.csv": as_csv(EPOCH_COLUMNS, epoch_lines(record)),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    write_json(folder / RESULTS, as_json(record, results))
    return [folder / name for name in [*texts, RESULTS]] + files_of(pictures)


def document(
    record: RunRecord, pictures: Sequence[Picture] = (), *, published: bool = True
) -> Document:
    """The report as a document."""
    figures: list[Block] = [Heading(2, "Figures"), *pictures] if pictures else []
    blocks = [
        *_headline(record),
        *_results(record, published=published),
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


def _headline(record: RunRecord) -> Iterator[Block]:
    if record.ended != FINISHED:
        reason = str(record.status.get("error") or "").strip().split("\n")[0]
        because = f": {reason}" if reason else ""
        stands = standing(record.folder, record.status)
        yield Notice((f"This run is {stands}{because}. What it has written is shown.",))
    yield Facts(list(_facts(record)))
    if said := [*better(record.results), *gained(record.results)]:
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
    results = results_of(record)
    for key in dict.fromkeys(one.key for one in results):
        by_network = {one.network: one for one in results if one.key == key}
        if headline := [by_network[name] for name in (BEST, LAST) if name in by_network]:
            yield _in_words(key), _first_and_beside(headline)
    closed = class_results(record.results, (BEST, LAST))
    for key in dict.fromkeys(one.key for one in closed):
        said = [f"{closed_sets.accuracy(each)} % ({each.network})" for each in closed]
        yield key, "; ".join(said)
    networks_judged = {one.network for one in results} | {one.network for one in closed}
    best = record.section("best") if BEST in networks_judged else {}
    networks = {BEST: best, LAST: record.section("architecture")}
    sizes = {name: _size(network) for name, network in networks.items() if network}
    if len(sizes) == 2:
        yield "Networks", "; ".join(f"{name}: {size}" for name, size in sizes.items())
    elif sizes:
        yield "Network", next(iter(sizes.values()))
    if tuned := "; ".join(map(_stage, record.results.get("finetuning", ()))):
        yield "Fine-tuning", tuned
    began, ended = span(record.folder)
    if began is not None and ended is not None:
        yield "Began", _moment(began)
        seconds = record.section("seconds")
        parts = ", ".join(f"{name} {duration(s)}" for name, s in seconds.items() if finite(s))
        yield "Took", f"{duration(ended - began)}{f' ({parts})' if parts else ''}"
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


def _first_and_beside(results: Sequence[EpisodeResult]) -> Text:
    """The network that was chosen by its loss, where there is one, and the last one beside it."""
    first, *others = results
    name = f" % ({first.network})" if others else " %"
    beside = "".join(f"; {one.network} {_accuracy(one)} %" for one in others)
    return (Bold(_accuracy(first)), name, beside, _count(first))


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


def _moment(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S %Z}"


def _opened(record: RunRecord) -> Mapping[str, Any]:
    """What the run said of itself when it opened."""
    return next(iter(record.events.get("open", ())), {})


def _fingerprint(record: RunRecord) -> str | None:
    found = record.results.get("fingerprint")
    if found is None:
        found = (_opened(record).get("tags") or {}).get("fingerprint")
    return None if found is None else str(found)


# -- results -----------------------------------------------------------------------------------


def _results(record: RunRecord, *, published: bool) -> Iterator[Block]:
    yield Heading(2, "Results")
    results = results_of(record)
    if class_results(record.results):
        yield from closed_sets.blocks(record)
        return
    if not results:
        yield Notice("There are no few-shot accuracies: the run has not come to judge a network.")
        return
    for transductive in dict.fromkeys(one.transductive for one in results):
        judged = [one for one in results if one.transductive == transductive]
        yield Heading(3, "Transductive" if transductive else "Inductive")
        top = sorted({k for one in judged for k in one.top_k}, key=str)
        yield Table(
            ["episodes", "network", "accuracy ± 95 % CI (%)", "n", *_top_names(top), "method"],
            [LEFT, LEFT, RIGHT, RIGHT, *[RIGHT] * len(top), LEFT],
            [
                [
                    _in_words(one.key),
                    one.network,
                    _accuracy(one),
                    NOTHING if one.episodes is None else f"{one.episodes:,}",
                    *(_figure(one.top_k.get(k), ".2f") for k in top),
                    one.method,
                ]
                for one in judged
            ],
        )
    networks = dict.fromkeys(one.network for one in results)
    yield Items([(Bold(name), f": {MEANING[name]}") for name in networks])
    yield Paragraph(
        "Mean accuracy over n episodes, ± 1.96·s/√n. It covers other episodes of the same classes, "
        "but no other seeds; nothing is bold, because one run compares with nothing."
    )
    if published:
        yield from _published(record)


def _top_names(top: Sequence[str]) -> list[str]:
    return [f"top-{k} (%)" for k in top]


def _published(record: RunRecord) -> Iterator[Block]:
    """What is known of the same data set, and of the same method and network on it."""
    comparison = compare([record.folder])
    beside = [table for table in comparison.tables if any(row.published for row in table.rows)]
    if not beside and not comparison.alone:
        return
    yield Heading(2, "Beside published figures")
    for table in beside:
        yield measured_block(table)
    for block in published_blocks(comparison):
        yield Heading(block.level + 1, block.text) if isinstance(block, Heading) else block
    yield Paragraph(PUBLISHED)


def latex(record: RunRecord, results: Sequence[EpisodeResult]) -> list[LatexTable]:
    """The results and the costs for a paper; inductive and transductive ones apart."""
    tables = []
    about = str(record.setting("experiment_name", record.folder.name))
    for transductive in dict.fromkeys(one.transductive for one in results):
        judged = [one for one in results if one.transductive == transductive]
        lines = [
            [
                _in_words(one.key),
                one.network,
                _accuracy(one),
                NOTHING if one.episodes is None else f"{one.episodes:,}",
                one.method,
            ]
            for one in judged
        ]
        firsts = [n for n, one in enumerate(judged) if n and one.key != judged[n - 1].key]
        kind = "transductive" if transductive else "inductive"
        tables.append(
            LatexTable(
                f"{about}: accuracy in % ± 95 % CI over n episodes, {kind}.",
                ["episodes", "network", "accuracy", "n", "method"],
                [LEFT, LEFT, RIGHT, RIGHT, LEFT],
                lines,
                ["One run: the intervals cover other episodes, but no other seeds."],
                firsts,
            )
        )
    if costs := list(_costs(record)):
        header = ["", *costs[0][1]]
        align = [LEFT, *[RIGHT] * (len(header) - 1)]
        lines = [[name, *values.values()] for name, values in costs]
        tables.append(LatexTable(f"{about}: {_of_what(record)}.", header, align, lines))
    return tables


def _in_words(key: str) -> str:
    dataset, _, rest = key.partition("/")
    split, _, list_ = rest.partition("/")
    ways, _, shots = list_.removesuffix("s").partition("w")
    if not ways.isdigit() or not shots.isdigit():
        return key
    return f"{dataset} {split}, {ways}-way {shots}-shot"


def _accuracy(result: EpisodeResult) -> str:
    interval = NOTHING if result.ci95 is None else f"{result.ci95:.2f}"
    return f"{result.accuracy:.2f} ± {interval}"


def _count(result: EpisodeResult) -> str:
    return "" if result.episodes is None else f" (n={result.episodes:,})"


# -- efficiency --------------------------------------------------------------------------------


def _efficiency(record: RunRecord) -> Iterator[Block]:
    yield Heading(2, "Efficiency")
    costs = list(_costs(record))
    if costs:
        header = ["", *costs[0][1]]
        lines = [[name, *values.values()] for name, values in costs]
        yield Table(header, [LEFT, *[RIGHT] * (len(header) - 1)], lines)
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


def _costs(record: RunRecord) -> Iterator[tuple[str, dict[str, str]]]:
    """What the networks cost: a name, and values by network; those that no network has left out."""
    networks = {
        "at the start": _seed_network(record),
        "best": record.section("best"),
        "last": record.section("efficiency"),
    }
    networks = {name: costs for name, costs in networks.items() if costs}
    for key, name, form in COSTS if "last" in networks else ():
        # None of these can be 0; an older version may have read so from a coarse clock.
        values = {
            network: _figure(costs.get(key) or None, form) for network, costs in networks.items()
        }
        if set(values.values()) != {NOTHING}:
            yield name, values


def _seed_network(record: RunRecord) -> Mapping[str, Any]:
    """Params and MACs before the first mutation, where there was one."""
    return record.mutations[0]["before"] if record.mutations else {}


def _of_what(record: RunRecord) -> str:
    costs = record.section("efficiency")
    return f"The backbone at {costs.get('resolution', '?')} px on {costs.get('device', '?')}"


# -- mutations ---------------------------------------------------------------------------------


def _mutations(record: RunRecord) -> Iterator[Block]:
    yield Heading(2, "Mutations")
    if not record.mutations:
        yield Notice(_why_no_mutations(record))
        return
    header = [
        "#", "after epoch", "kind", "what", "channels", "params", "MACs", "loss",
        "function delta", "outcome", "why",
    ]  # fmt: skip
    align = [RIGHT, RIGHT, LEFT, LEFT, LEFT, RIGHT, RIGHT, RIGHT, RIGHT, LEFT, LEFT]
    yield Table(header, align, [_mutation(one) for one in record.mutations])
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
    header = [
        "#", "held episodes (%)", "change (points)", "at the end of probation (points)",
        "removed channels alone (%)", "undecided", "latency (ms)", "batch",
    ]  # fmt: skip
    yield Paragraph("What every PRUNE has cost and given:")
    yield Table(header, [RIGHT] * len(header), rows)
    yield Paragraph(
        "Held episodes: 5-way 1-shot on held images without their labels, every image a class of "
        "its own, one view its support and another its query; ± the standard error of the paired "
        "difference. At the end of probation the pruned network is compared with the one that was "
        "not pruned. Undecided: removed channels whose importance does not lie below that of the "
        "least kept one of their block by two standard errors."
    )


def _pruning(one: Mapping[str, Any], ended: Mapping[str, Any]) -> list[Text]:
    accuracy, latency = (section(one["measured"], key) for key in ("accuracy", "latency"))
    trigger = one.get("trigger")
    undecided = trigger.get("undecided") if isinstance(trigger, Mapping) else None
    return [
        str(one["index"]),
        " → ".join(_figure(accuracy.get(key), ".2f") for key in ("before", "after")),
        _with_error(accuracy, "change"),
        _with_error(ended, "accuracy_change"),
        _figure(accuracy.get("removed"), ".2f"),
        _figure(undecided, ".0f"),
        " → ".join(_figure(latency.get(key), ".2f") for key in ("before_ms", "after_ms")),
        _figure(latency.get("batch"), ".0f"),
    ]


def _with_error(figures: Mapping[str, Any], key: str) -> str:
    error = figures.get(f"{key}_error")
    return (
        f"{_figure(figures.get(key), '+.2f')} ± {_figure(error, '.2f')}"
        if finite(error)
        else NOTHING
    )


def _why_no_mutations(record: RunRecord) -> str:
    if not record.setting("evolution.enabled") and not record.setting("sparsity.enabled"):
        return "There are none: neither evolution nor sparsity is switched on."
    reasons = [str(line.get("reason")) for line in record.events.get("decision", ())]
    last = f" The last decision was: {reasons[-1]}." if reasons else ""
    return f"There are none.{last}"


def _mutation(one: Mapping[str, Any]) -> list[Text]:
    before, after = one["before"], one["after"]
    return [
        str(one["index"]),
        str(one["epoch"] + 1),
        one["kind"],
        _target(one["kind"], one.get("target")),
        f"{_channels(before)} → {_channels(after)}",
        *(f"{in_units(before[key])} → {in_units(after[key])}" for key in ("params", "macs")),
        " → ".join(_figure(one.get(key), ".3f") for key in ("loss_before", "loss_after")),
        _figure(one.get("function_delta"), ".2g"),
        "accepted" if one["accepted"] else Bold("rolled back"),
        str((one.get("trigger") or {}).get("reason", NOTHING)),
    ]


def _channels(counts: Mapping[str, Any]) -> str:
    return "-".join(str(channels) for channels in counts["channels"])


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
        lines: list[list[Text]] = [
            [Code(one.key), _typed(one.default), _typed(one.value)]
            for one in differing
            if one.decides == decides
        ]
        if lines:
            yield Table(["key", "default", "this run"], [LEFT, LEFT, LEFT], lines)
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
        for key, result in judged(record.results, network).items():
            about = f"{key}, {network} network"
            if not isinstance(result, dict) or not finite(result.get("accuracy")):
                yield f"{about}: results.json holds no accuracy: left out."
                continue
            for doubt in doubts_of(result):
                yield f"{about}: the accuracy means little, because {doubt}."


def _figure(value: Any, form: str) -> str:
    return format(value, form) if finite(value) and not math.isnan(value) else NOTHING
