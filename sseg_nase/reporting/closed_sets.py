"""What a report says of a run that was evaluated on a closed set."""

from __future__ import annotations

from collections.abc import Iterator

from sseg_nase.finite import finite
from sseg_nase.reporting.document import LEFT, NOTHING, RIGHT, Block, Heading, Paragraph, Table
from sseg_nase.rundir.record import RunRecord
from sseg_nase.rundir.results import CLOSED_SECTIONS, LAST, ClassResult, class_results

FIGURES = ("precision", "recall", "f1", "auc")
NAMES = {"precision": "precision", "recall": "recall", "f1": "F1", "auc": "AUC"}


def blocks(record: RunRecord) -> Iterator[Block]:
    """Yield the figures of every network, and those of every class of the last one."""
    results = class_results(record.results)
    top = sorted({k for one in results for k in one.top_k}, key=int)
    yield Table.of(
        [
            *("images", "network", "accuracy ± 95 % CI (%)", "n"),
            *(f"top-{k} (%)" for k in top),
            *(f"{NAMES[key]} (%)" for key in FIGURES),
            "method",
        ],
        [LEFT, LEFT, RIGHT, RIGHT, *[RIGHT] * (len(top) + len(FIGURES)), LEFT],
        [
            [
                one.key,
                one.network,
                accuracy(one),
                NOTHING if one.images is None else f"{one.images:,}",
                *(_figure(one.top_k.get(k)) for k in top),
                *(_figure(getattr(one, key)) for key in FIGURES),
                one.method,
            ]
            for one in results
        ],
    )
    yield Paragraph(
        "Share of n images that are taken for their class, ± 1.96·s/√n; it covers other images of "
        "the same classes, but no other seeds. Precision, recall, F1 and the area under the ROC "
        "curve (AUC) are means over classes, each against the others."
    )
    for key, section in record.section(CLOSED_SECTIONS[LAST]).items():
        rows = section.get("per_class")
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            yield Heading(3, f"Classes of {key}")
            yield Table.of(
                ["class", "n", *(f"{NAMES[each]} (%)" for each in FIGURES)],
                [LEFT, *[RIGHT] * (1 + len(FIGURES))],
                [
                    [
                        str(row.get("name", NOTHING)),
                        _figure(row.get("images"), ",.0f"),
                        *(_figure(row.get(each)) for each in FIGURES),
                    ]
                    for row in rows
                ],
            )


def accuracy(result: ClassResult) -> str:
    """Return an accuracy with its interval, without a unit."""
    return f"{result.accuracy:.2f} ± {_figure(result.ci95)}"


def _figure(value: object, form: str = ".2f") -> str:
    return format(value, form) if finite(value) else NOTHING
