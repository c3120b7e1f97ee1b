"""The report of a search: the answer, the front, what mattered, and the figures, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.config.commands import command
from sseg_nase.files import write_json, write_text
from sseg_nase.finite import figure
from sseg_nase.reporting.document import (
    LEFT,
    RIGHT,
    Block,
    Bold,
    Code,
    Document,
    Facts,
    Heading,
    Listing,
    Notice,
    Paragraph,
    Table,
    Text,
)
from sseg_nase.reporting.html import as_html
from sseg_nase.reporting.markdown import as_markdown
from sseg_nase.reporting.pictures import drawn, files_of
from sseg_nase.rundir.status import FINISHED
from sseg_nase.search import Log, Scored
from sseg_nase.search.predictors import RankCorrelation, rank_correlation
from sseg_nase.searches.analysis import compared, importance, leading, shares
from sseg_nase.searches.answer import LARGEST, OF_RANDOM, SAME_IMAGES, spent_of
from sseg_nase.searches.choices import choices_of
from sseg_nase.searches.evaluators import PREDICTORS
from sseg_nase.searches.folder import FEW, SearchFolder
from sseg_nase.searches.generations import generations_of
from sseg_nase.searches.outcome import NAMES, Outcome, outcome, with_error
from sseg_nase.searches.progress import Progress, said_of_point, short
from sseg_nase.spaces.space import Space
from sseg_nase.tracking.console import duration

BEST = 10  # rows of the table of the best
FEWEST_LEARNT, LEARNT = 20, 200  # results that predictors are tried on


def write_report(search: SearchFolder, folder: Path) -> list[Path]:
    """Write report.html, report.md, report.json and figures/ to `folder`, and return the files.

    Raises `OSError` where it cannot be written, `UserError` for a log that cannot be read.
    """
    from sseg_nase.searches.figures import figures_of_search
    from sseg_nase.searches.gates import figures_of_gates, gates_of, rivals

    folder.mkdir(parents=True, exist_ok=True)
    log = search.log()
    results = compared(log)
    choices = choices_of(search.plan.get("choices", {}))
    made = search.made()
    weights = importance(log, choices, results, made)
    counts = shares(log, choices, results, made)
    figures = figures_of_search(log, choices, results, weights, counts, made, search.others())
    found = outcome(search.path)
    if (supernet := search.plan.get("supernet")) is not None:
        of_gates = figures_of_gates(gates_of(search.path, supernet), leading(log))
        figures = chain(of_gates, [rivals(found)], figures)
    pictures = drawn(figures, folder)
    by_name = {picture.title: picture for picture in pictures}
    space = search.space()
    blocks: list[Block] = []
    if found is not None:
        blocks.append(Paragraph((Bold(_sentence(found.verdict)),)))
    blocks += [*_head(search, log, results), *_answer(log, results, space, found)]
    if found is not None:
        blocks += _from_scratch(found, space)
    blocks += [Heading(2, "Course of the search"), *by_name.values()]
    ranked = rankings(log, search.made(), results)
    blocks += _predictors(ranked)
    blocks += _failures(log)
    document = Document(f"Search {search.path.name}", blocks)
    written = {
        "report.html": as_html(document),
        "report.md": as_markdown(document, folder),
    }
    for name, text in written.items():
        write_text(folder / name, text)
    told = _as_data(search, log, results, weights) | {"answer": _as_told(found)}
    told["generations"] = [vars(one) for one in generations_of(log, search.made())]
    told["predictors"] = {name: one._asdict() for name, one in ranked.items()}
    write_json(folder / "report.json", told)
    return [*(folder / name for name in (*written, "report.json")), *files_of(pictures)]


def _head(search: SearchFolder, log: Log, results: Sequence[Scored]) -> list[Block]:
    failed = sum(one.error is not None for one in log.told)
    spent = log.spent
    progress = Progress(log.objectives)
    for one in log.told:
        progress.add(one)
    volume = progress.hypervolume()
    wanted = ", ".join(f"{name} ({way})" for name, way in log.objectives.goals.items())
    facts: list[tuple[str, Text]] = [
        ("status", search.status),
        ("what", str(search.plan["title"])),
        ("goals", wanted),
        ("candidates", f"{len(log.candidates)} asked for, {len(log.told)} evaluated"),
        ("failed", str(failed)),
        ("evaluations took", duration(spent.seconds)),
        ("images seen", f"{spent.images:,.0f}"),
        ("training MACs", f"{spent.training_macs:.3g}"),
    ]
    beside = spent_of(search.path)
    if beside.training_macs or beside.seconds:
        more = f"{duration(beside.seconds)}, {beside.training_macs:.3g} training MACs"
        facts.append(("random search and trainings from scratch took", more))
    caps = {**log.about.get("caps", {}), **log.objectives.caps}
    if caps:
        facts.append(("caps", ", ".join(f"{k} ≤ {short(v)}" for k, v in caps.items())))
    if volume is not None:
        facts.append(("hypervolume", f"{volume:.3f}, where 1 is the box of the first ten results"))
    blocks: list[Block] = [Facts(facts)]
    if search.status != FINISHED:
        go_on = Code(command(resume=search.path))
        blocks.append(Notice(("This search is ", search.status, ". Resume it by ", go_on, ".")))
    return blocks


def _answer(
    log: Log, results: Sequence[Scored], space: Space | None, found: Outcome | None
) -> list[Block]:
    blocks: list[Block] = [Heading(2, "The best")]
    if not results:
        return [*blocks, Notice("No candidate has a score within the caps yet.")]
    ordered = sorted(results, key=log.value, reverse=True)
    best = ordered[0]
    blocks.append(
        Paragraph(
            f"Candidate {best.candidate.number} has the best {leading(log)} of {len(results)} "
            "results. It is the best of many noisy measurements, so its score is somewhat too "
            "good: "
            + (
                "what it is when it is trained from scratch stands below."
                if found is not None
                else "train it from scratch with other seeds before it is compared with anything "
                "(search.final_seeds=3 does)."
            )
        )
    )
    blocks.append(Listing("\n".join(said_of_point(best.candidate.point, space))))
    blocks.append(_table(log, ordered[:BEST], space))
    if len(log.objectives.goals) > 1:
        ahead = log.front(best.candidate.fidelity)
        blocks += [Heading(2, "Pareto front"), _table(log, ahead, space)]
    return blocks


def _from_scratch(found: Outcome, space: Space | None) -> list[Block]:
    """The answer and its rivals, trained from scratch, and whether the search was worth it."""
    several = f"{found.how_many} ({', '.join(map(str, found.seeds))})"
    header = ["network", "candidate", found.goal, "params", "macs", "training MACs", "failed"]
    rows: list[list[Text]] = [
        [
            NAMES[one.role],
            "" if one.candidate is None else str(one.candidate),
            with_error(one.mean, one.ci95),
            short(one.average("params")),
            short(one.average("macs")),
            f"{one.training_macs:.3g}",
            str(one.failed or ""),
        ]
        for one in found.standings
    ]
    equal = (
        ""
        if SAME_IMAGES in found.notes
        else "Its answer and the largest network saw as many images as cost the training MACs of "
        "the answer. "
    )
    blocks: list[Block] = [
        Heading(2, "Trained from scratch"),
        Paragraph(
            f"Each with {several} that no candidate has had{found.with_overrides}, on "
            f"{found.evaluated_on}. Random search evaluated {found.random_candidates} candidates "
            f"at the same fidelity and budget. {equal}± is the 95 % interval over seeds."
        ),
        Table.of(header, [LEFT, *(RIGHT for _ in header[1:])], rows),
    ]
    if found.comparisons:
        unit = "images" if found.closed else "episodes"
        columns = ["the answer minus", "points", "over", "seeds", unit, "p (Holm)"]
        lines: list[list[Text]] = [
            [
                NAMES[one.role],
                f"{one.difference:+.2f} ± {one.ci95:.2f}",
                one.over,
                str(one.seeds),
                str(one.episodes),
                f"{one.p:.2g}",
            ]
            for one in found.comparisons
        ]
        align = [LEFT, RIGHT, LEFT, RIGHT, RIGHT, RIGHT]
        blocks.append(Table.of(columns, align, lines))
    blocks += [Paragraph(_sentence(note)) for note in found.notes]
    rivals = [one for one in found.standings if one.role in (OF_RANDOM, LARGEST)]
    for one in rivals:
        told = " ".join(said_of_point(one.point, space))
        blocks.append(Paragraph(f"{NAMES[one.role]}: {told}"))
    return blocks


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _as_told(found: Outcome | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "verdict": found.verdict,
        "seeds": list(found.seeds),
        "overrides": list(found.overrides),
        "networks": [
            {
                "role": one.role,
                "candidate": one.candidate,
                "point": dict(one.point),
                "mean": one.mean,
                "ci95": figure(one.ci95),
                "training_macs": one.training_macs,
                "runs": [each.run for each in one.scores.values()],
            }
            for one in found.standings
        ],
        "comparisons": [vars(one) for one in found.comparisons],
        "notes": list(found.notes),
    }


def _table(log: Log, rows: Sequence[Scored], space: Space | None) -> Table:
    goals = list(log.objectives.goals)
    names = list(rows[0].candidate.point)
    apart = len(names) <= FEW

    def point(one: Scored) -> list[str]:
        if apart:
            return [short(one.candidate.point[name]) for name in names]
        return [" ".join(said_of_point(one.candidate.point, space))]

    header = ["candidate", *goals, *(names if apart else ["point"]), "how", "run"]
    places = [RIGHT] * len(names) if apart else [LEFT]
    align = [RIGHT, *(RIGHT for _ in goals), *places, LEFT, LEFT]
    lines: list[list[Text]] = [
        [
            str(one.candidate.number),
            *(short(one.scores[name]) for name in goals),
            *point(one),
            one.candidate.how,
            Path(one.run).name if one.run else "",
        ]
        for one in rows
    ]
    return Table.of(header, align, lines)


def rankings(
    log: Log, space: Space | None, results: Sequence[Scored]
) -> dict[str, RankCorrelation]:
    """Return how well each predictor ranks results that it has not seen, by cross-validation.

    Of the latest `LEARNT` results; nothing below `FEWEST_LEARNT` of them, or without a space.
    """
    if space is None or len(results) < FEWEST_LEARNT:
        return {}
    latest = sorted(results, key=lambda one: one.candidate.number)[-LEARNT:]
    points = [one.candidate.point for one in latest]
    values = np.array([log.value(one) for one in latest])
    return {
        name: rank_correlation(make(), space, points, values) for name, make in PREDICTORS.items()
    }


def _predictors(ranked: Mapping[str, RankCorrelation]) -> list[Block]:
    if not ranked:
        return []
    lines: list[list[Text]] = [
        [name, f"{found.spearman:.2f}", f"{found.kendall:.2f}"] for name, found in ranked.items()
    ]
    return [
        Heading(2, "Predictors"),
        Paragraph(
            "How well each ranks results of this search that it has not seen, by five-fold "
            "cross-validation: 1 is the true order, 0 none. A search that has settled on one "
            "region has results that are hard to tell apart. The better ones are worth a try as "
            "search.screen or in evaluator=predicted."
        ),
        Table.of(["predictor", "Spearman", "Kendall"], [LEFT, RIGHT, RIGHT], lines),
    ]


def _failures(log: Log) -> list[Block]:
    failed = [one for one in log.told if one.error is not None]
    if not failed:
        return []
    lines: list[list[Text]] = [[str(one.candidate.number), str(one.error)] for one in failed]
    return [Heading(2, "Failed candidates"), Table.of(["candidate", "why"], [RIGHT, LEFT], lines)]


def _as_data(
    search: SearchFolder, log: Log, results: Sequence[Scored], weights: Sequence[Any]
) -> dict[str, Any]:
    ordered = sorted(results, key=log.value, reverse=True)

    def row(one: Scored) -> dict[str, Any]:
        candidate = one.candidate
        return {
            "candidate": candidate.number,
            "point": dict(candidate.point),
            "fidelity": dict(candidate.fidelity),
            "scores": dict(one.scores),
            "run": one.run,
        }

    return {
        "schema": 1,
        "search": str(search.path),
        "status": search.status,
        "objectives": log.objectives.to_json(),
        "best": [row(one) for one in ordered[:BEST]],
        "front": [row(one) for one in log.front(ordered[0].candidate.fidelity)] if ordered else [],
        "importance": {one.name: one.share for one in weights},
        "importance_in_a_forest": {one.name: one.forest for one in weights},
        "spent": vars(log.spent),
        "failed": {s.candidate.number: s.error for s in log.told if s.error is not None},
    }
