"""ROC curves of a run that was evaluated on a closed set."""

from __future__ import annotations

import numpy as np
from matplotlib.lines import Line2D

from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.reporting.figures.accuracy import LOOKS
from sseg_nase.rundir.record import RunRecord
from sseg_nase.rundir.results import CLOSED_SECTIONS, ClassResult, class_results

TITLE = "ROC curve"
SIDE = 3.1  # inches


def roc(record: RunRecord) -> Drawing:
    """The mean over classes of the ROC curves of each against the others, a line per network."""
    found = [(one, _curve(record, one)) for one in class_results(record.results)]
    curves = [(one, curve) for one, curve in found if curve is not None and one.auc is not None]
    if not curves:
        return absent("roc", TITLE, "The run has evaluated no network on more than one class.")
    with style.applied():
        figure = style.page(SIDE, SIDE)
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=style.BLACK, linestyle=style.DASHES[2], linewidth=1)
        handles = []
        for one, curve in curves:
            words, look = LOOKS[one.network]
            axes.plot(*curve, color=look.colour, linewidth=1.2, gid=one.network)
            named = f"{words}: {one.auc:.2f} %"
            handles.append(Line2D([], [], color=look.colour, linewidth=1.2, label=named))
        axes.set_xlabel("false positive rate")
        axes.set_ylabel("true positive rate")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.01)
        axes.set_aspect("equal")
        style.legend_below(figure, handles, 1)
    caption = (
        f"ROC curves on {curves[0][0].key}, each class against the others, mean over classes; in "
        "the legend the mean area under them in %. Dotted: chance."
    )
    return Drawing("roc", TITLE, caption, figure)


def _curve(record: RunRecord, one: ClassResult) -> np.ndarray | None:
    """False and true positive rates `[2, points]`, where results.json has them."""
    try:
        curve = np.array(record.section(CLOSED_SECTIONS[one.network])[one.key].get("roc"), float)
    except (TypeError, ValueError):
        return None
    return curve if curve.ndim == 2 and len(curve) == 2 else None
