"""What is worth a notice about the images of a store, gathered while they are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sseg_nase.data.opening import ORDINARY, Facts
from sseg_nase.errors import UserError

DEEP_BITS = 14  # images of 16 bits that use fewer are dark
NEARLY_BLACK = 15  # of 255
MOST_SIZES = 3  # in a message
ONE_SIZE = (
    "A closed set of your own has images of one size (dataset.sizes=auto): make them so, or set "
    "dataset.sizes=any, and all are brought to dataset.image_size."
)

NameOf = Callable[[int], str]
Span = tuple[float, float]


@dataclass
class Remarks:
    """Facts about images by their position in the listing; `add` them in order."""

    count: int = 0
    several: list[tuple[int, int]] = field(default_factory=list)  # place, frames
    spans: dict[str, dict[Span, list[int]]] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    brightest: int = 0
    sizes: dict[tuple[int, int], list[int]] = field(default_factory=dict)  # places, where asked for

    def add(self, facts: Sequence[Facts], brightest: int) -> None:
        """Take note of the images of a block, the next ones of the listing."""
        for place, image in enumerate(facts, start=self.count):
            if image is ORDINARY:
                continue
            if image.size is not None:
                self.sizes.setdefault(image.size, []).append(place)
            if image.frames > 1:
                self.several.append((place, image.frames))
            if image.kind is not None and image.span is not None:
                places = self.spans.setdefault(image.kind, {}).setdefault(image.span, [])
                places.append(place)
                self.peaks[image.kind] = max(self.peaks.get(image.kind, 0), image.peak)
        self.count += len(facts)
        self.brightest = max(self.brightest, brightest)

    def ranges(self) -> dict[str, list[float]]:
        """Per mode of more than 8 bits the values that became black and white."""
        return {kind: [*next(iter(spans))] for kind, spans in self.spans.items()}

    def check(self, name_of: NameOf) -> None:
        """Raise UserError where images of one mode were taken for values of different ranges, or
        where their sizes differ and are to be one."""
        if len(self.sizes) > 1:
            usual = sorted(self.sizes.items(), key=lambda one: -len(one[1]))
            said = ", ".join(
                f"{width} × {height} ({len(places):,}, such as {name_of(places[0])})"
                for (width, height), places in usual[:MOST_SIZES]
            )
            more = ", …" if len(usual) > MOST_SIZES else ""
            raise UserError(f"The images have {len(usual)} sizes: {said}{more}. {ONE_SIZE}")
        for kind, spans in self.spans.items():
            if kind == "I;16" or len(spans) == 1:
                continue
            (one, of_one), (other, of_other) = list(spans.items())[:2]
            raise UserError(
                f"The images of mode {kind} have values of different ranges: {name_of(of_one[0])} "
                f"looks like {one[0]:g}…{one[1]:g}, {name_of(of_other[0])} like "
                f"{other[0]:g}…{other[1]:g}. Set dataset.value_range=[LOW,HIGH], which is black "
                "and white in all of them."
            )

    def notices(self, name_of: NameOf) -> list[str]:
        """Sentences on what a user may not expect."""
        found = []
        if self.several:
            place, frames = self.several[0]
            found.append(
                f"{len(self.several):,} of {self.count:,} images have several pages or frames, "
                f"such as {name_of(place)} ({frames}): only the first is taken."
            )
        for kind, spans in self.spans.items():
            top = max(span[1] for span in spans)
            peak, number = self.peaks[kind], sum(map(len, spans.values()))
            if kind == "I;16" and top == 65535 and peak < 2**DEEP_BITS:
                found.append(
                    f"The brightest pixel of {number:,} images with 16 bits is {peak:,.0f} of "
                    f"65,535: they are dark. dataset.value_range=[0,{peak:.0f}] makes all of them "
                    "brighter by the same factor."
                )
        if self.brightest <= NEARLY_BLACK:
            found.append(f"All images are nearly black: their brightest value is {self.brightest}.")
        return found


def notices_of_one_colour(
    plain: np.ndarray, labels: np.ndarray, classes: Sequence[str]
) -> list[str]:
    """A sentence where all images of a class, or of the whole set, have one colour each."""
    if not plain.any():
        return []
    advice = (
        "look at the files, and at dataset.background where they are transparent or "
        "dataset.value_range where they have more than 8 bits."
    )
    if plain.all():
        return [f"All {len(plain):,} images have one colour each: {advice}"]
    counts = np.bincount(labels, minlength=len(classes))
    empty = [
        name
        for name, count, of_one in zip(
            classes, counts, np.bincount(labels[plain], minlength=len(classes)), strict=True
        )
        if count and count == of_one
    ]
    if not empty:
        return []
    more = f" and of {len(empty) - 1} more" if len(empty) > 1 else ""
    return [f"All images of class {empty[0]}{more} have one colour each: {advice}"]
