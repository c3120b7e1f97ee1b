"""Losses of the pretraining, and the course of fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sseg_nase.config.groups.finetune import Classifier, FinetuneConfig, Linear
from sseg_nase.config.groups.ssl import SSLConfig
from sseg_nase.config.options import option_of
from sseg_nase.finite import finite
from sseg_nase.reporting.figures import Drawing, absent, style
from sseg_nase.reporting.figures.trajectory import levels_in_words, one_after_the_other
from sseg_nase.rundir.record import RunRecord, Series

LOSSES = "Training losses"
TUNING = "Fine-tuning"


class Curve(NamedTuple):
    """A quantity in training: of single batches, and its mean over every epoch where told."""

    label: str
    look: style.Look
    batches: Series
    epochs: tuple[list[float], list[float]]


def losses(record: RunRecord) -> Drawing:
    """Total and contrastive loss above the distillation loss, over the epochs of pretraining."""
    total, contrastive, distillation = (
        record.series(f"pretrain/{name}") for name in ("loss", "contrastive", "distillation")
    )
    epochs = record.events.get("epoch", [])
    means = _means(epochs, "loss")
    if not total.steps and not means[0]:
        why = "The run has told of no training loss: nothing was pretrained, or it stopped before."
        return absent("losses", LOSSES, why)
    per_epoch = steps_per_epoch(record)
    same = contrastive.values == total.values or not contrastive.steps
    name = "total = contrastive" if same and contrastive.steps else "total"
    upper = [Curve(name, style.Look(style.BLACK, "o", "-"), total, means)]
    if not same:
        look = style.Look(style.ORANGE, "s", style.DASHES[1])
        upper.append(Curve("contrastive", look, contrastive, ([], [])))
    lower = []
    if distillation.steps:
        look = style.Look(style.PURPLE, "^", style.DASHES[3])
        lower.append(Curve("distillation", look, distillation, _means(epochs, "gap")))
    done = max(
        [
            *(math.ceil(epoch) for epoch in means[0]),
            *(math.ceil(step / per_epoch) for step in total.steps),
            *(line["epoch"] + 1 for line in record.mutations),
        ]
    )
    with style.applied():
        figure = style.page(4.1 if lower else 2.9)
        panels = figure.subplots(
            1 + bool(lower),
            1,
            sharex=True,
            squeeze=False,
            height_ratios=[1.6, 1][: 1 + bool(lower)],
        )[:, 0]
        panels[0].set_xlim(0, done)
        for axes, curves in zip(panels, (upper, lower), strict=False):
            for curve in curves:
                _draw(axes, curve, per_epoch)
            axes.grid(axis="y")
            style.mark_epochs(axes, record.mutations)
        unit = "nats" if option_of(SSLConfig, record.setting("ssl.name")).nats else "no unit"
        panels[0].set_ylabel(f"loss ({unit})")
        if lower:
            panels[0].tick_params(labelbottom=False)
            panels[1].set_ylabel("distillation loss\n(no unit)")
        panels[-1].set_xlabel("epochs of pretraining")
        style.whole(panels[-1].xaxis)
        spans = style.level_spans(epochs)
        style.name_levels(figure, list(panels), spans)
        handles = [
            handle for curve in (*upper, *lower) for handle in _handles(curve)
        ] + style.mutation_handles(record.mutations)
        style.legend_below(figure, handles)
    weight = record.setting("ssl.distillation_weight")
    of_weight = f"contrastive + {weight:g} × distillation" if finite(weight) and lower else ""
    caption = (
        f"Losses over the epochs of pretraining: of every logged batch (thin, n = "
        f"{len(total.steps)}) and the mean over each epoch (thick)."
        + (f" Total = {of_weight}." if of_weight else "")
        + (" Marks: mutations, made after the epoch." if record.mutations else "")
        + levels_in_words(record, spans)
        + " Losses at different levels of the curriculum do not compare." * (len(spans) > 1)
    )
    return Drawing("losses", LOSSES, caption, figure)


def steps_per_epoch(record: RunRecord) -> float:
    """Optimizer steps of one epoch; the architecture's figures are told before each."""
    told = record.series("arch/params").steps
    apart = [b - a for a, b in pairwise(told) if b > a]
    if apart:
        return float(min(apart))
    marks = [(line["step"], line["epoch"] + 1) for line in record.mutations if line["step"] > 0]
    if marks:
        return marks[0][0] / marks[0][1]
    last = max(record.series("pretrain/loss").steps, default=0)
    done = max([line["epoch"] + 1 for line in record.events.get("epoch", ())], default=1)
    return max(1.0, last / done)


def _means(epochs: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    """Of every epoch, at the middle of it."""
    known = sorted((line["epoch"], line[key]) for line in epochs if finite(line.get(key)))
    return [epoch + 0.5 for epoch, _ in known], [value for _, value in known]


def _draw(axes: Axes, curve: Curve, per_epoch: float) -> None:
    at = np.array(curve.batches.steps, dtype=float) / per_epoch
    alone = not curve.epochs[0]
    axes.plot(
        at, curve.batches.values, color=curve.look.colour, gid=f"{curve.label}, batches",
        linestyle=curve.look.dashes if alone else "-",
        linewidth=1.0 if alone else 0.6, alpha=0.9 if alone else 0.45,
    )  # fmt: skip
    if not alone:
        axes.plot(
            *curve.epochs, color=curve.look.colour, linestyle=curve.look.dashes, linewidth=1.6,
            gid=f"{curve.label}, epochs", marker=curve.look.marker,
            markersize=3 if len(curve.epochs[0]) <= 60 else 0,
        )  # fmt: skip


def _handles(curve: Curve) -> list[Line2D]:
    look = curve.look
    batches = Line2D([], [], color=look.colour, linewidth=0.7, alpha=0.6)
    if not curve.epochs[0]:
        batches.set(label=f"{curve.label} (batches)", linestyle=look.dashes, alpha=0.9)
        return [batches]
    batches.set_label(f"{curve.label} (batches)")
    return [
        Line2D([], [], color=look.colour, linestyle=look.dashes, linewidth=1.6, marker=look.marker,
               markersize=3, label=f"{curve.label} (epoch mean)"),
        batches,
    ]  # fmt: skip


def fine_tuning(record: RunRecord) -> Drawing:
    """Training loss and, below, accuracy on val episodes with its interval, per epoch."""
    lines = one_after_the_other(record.events.get("finetune", ()))
    evaluated = [line for line in lines if finite(line.get("val_accuracy"))]
    if not evaluated:
        return absent("finetuning", TUNING, "The run has fine-tuned no epoch.")
    methods = record.setting("finetune.sequence") or [record.setting("finetune.name", "")]
    kinds = [option_of(FinetuneConfig, method) for method in methods]
    name = ", then ".join(methods)
    last = max(line["number"] for line in evaluated)
    chosen_of = [index for index, line in enumerate(evaluated) if line["number"] == last]
    with style.applied():
        figure = style.page(4.0)
        above, below = figure.subplots(2, 1, sharex=True)
        known = [line for line in lines if finite(line.get("loss"))]
        above.plot(
            [line["epoch"] + 1 for line in known], [line["loss"] for line in known],
            color=style.BLACK, marker="o", markersize=3, label="training loss",
        )  # fmt: skip
        above.set_ylabel("loss (nats)" if all(kind.nats for kind in kinds) else "loss")
        trained = [line for line in lines if finite(line.get("accuracy"))]
        below.plot(
            [line["epoch"] + 1 for line in trained], [line["accuracy"] for line in trained],
            color=style.VERMILLION, marker="s", markersize=3, linestyle=style.DASHES[1],
            label="training batches",
        )  # fmt: skip
        at = [line["epoch"] + 1 for line in evaluated]
        value = np.array([line["val_accuracy"] for line in evaluated], dtype=float)
        half = np.array(
            [line["val_ci95"] if finite(line.get("val_ci95")) else 0.0 for line in evaluated]
        )
        below.errorbar(
            at, value, yerr=np.minimum(half, [value, 100 - value]), color=style.BLUE, marker="o",
            markersize=3.5, capsize=2,
            linewidth=1.3, elinewidth=0.8, label="val episodes ± 95 % CI",
        )  # fmt: skip
        best = max(chosen_of, key=lambda index: value[index])
        below.plot(
            [at[best]], [value[best]], marker="*", markersize=11, linestyle="none",
            markerfacecolor=style.YELLOW, markeredgecolor=style.BLACK, markeredgewidth=0.7,
            label=f"chosen: epoch {at[best]}", zorder=5,
        )  # fmt: skip
        below.set_ylabel("accuracy (%)")
        below.set_xlabel("epochs of fine-tuning")
        style.whole(below.xaxis)
        below.set_xlim(min(at) - 0.5, max(at) + 0.5)
        shown = [*above.get_lines(), *below.get_legend_handles_labels()[0]]
        for axes in (above, below):
            axes.grid(axis="y")
            for line in lines:
                if line["number"] and line["first"]:
                    axes.axvline(line["epoch"] + 0.5, color=style.GREY, linewidth=0.8)
        style.legend_below(figure, shown)
    chosen = "The network of the epoch with the best val accuracy counts. "
    if last:
        chosen = (
            "A line parts the stages, each of which begins with the network of the best val "
            "accuracy of the one before it; that of the last one counts. "
        )
    told = {
        Linear: "Training accuracy: of the classifier over all base classes, which is another "
        "task than the episodes of val classes.",
        Classifier: "Accuracy on val is over its images, of the classes of the training.",
    }
    caption = (
        f"Fine-tuning{f' with {name}' if name else ''} over {len(lines)} epochs: mean training "
        "loss (top), accuracy in training and on val episodes with its 95 % CI over episodes "
        f"(bottom). {chosen}" + told.get(kinds[-1], "")
    ).strip()
    return Drawing("finetuning", TUNING, caption, figure)
