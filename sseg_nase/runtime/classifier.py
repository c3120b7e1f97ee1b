"""Classes that are learnt from a few images each, on the features of a frozen network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from sseg_nase.errors import UserError, shown
from sseg_nase.files import write_json
from sseg_nase.runtime.metadata import Metadata
from sseg_nase.runtime.rule import METRICS, NORMALIZATIONS, softmax

UNKNOWN = "unknown"
SCHEMA = 1

Images = Sequence["Path | str | np.ndarray"] | np.ndarray


class Embedder(Protocol):
    """What gives features: a network with what is said of it."""

    metadata: Metadata

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Embed uint8 `[B, S, S, C]` as float32 `[B, features]`."""


class Prediction(NamedTuple):
    """What images were taken for.

    `names` of the likeliest class of each image, or `unknown`; `probabilities` float64 `[n, C]` of
    all `classes`, in their order.
    """

    names: list[str]
    probabilities: np.ndarray
    classes: tuple[str, ...]


class FewShotClassifier:
    """A classifier that learns new classes from a few images of each.

    A class is the mean of its images' features, and an image belongs to the class whose mean is
    nearest, as with `task=evaluate` and `evaluation.method=prototype`. Images are files, arrays
    `[H, W(, C)]`, or one array uint8 `[n, S, S, C]`.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.metadata = embedder.metadata
        mean = self.metadata.base_mean
        self._mean = None if mean is None else np.asarray(mean, dtype=np.float64)
        self._sums: dict[str, np.ndarray] = {}
        self._counts: dict[str, int] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order in which they were added."""
        return tuple(self._sums)

    def counts(self) -> dict[str, int]:
        """How many images each class was learnt from."""
        return dict(self._counts)

    def add(self, name: str, images: Images) -> None:
        """Learn the class `name` from `images`, or learn it further where it is known.

        Raises `UserError` where there is no image, or one that cannot be read; nothing is learnt
        then.
        """
        if not name or name == UNKNOWN:
            raise UserError(
                f"a class cannot be called {name!r}: take a name that is not empty and not "
                f"{UNKNOWN!r}, which stands for none of the classes."
            )
        if isinstance(images, str | Path):
            images = [images]
        if not len(images):
            raise UserError(f"class {name}: there is no image to learn it from; give at least one.")
        features = self._features(images)
        self._sums[name] = self._sums.get(name, 0) + features.sum(axis=0)
        self._counts[name] = self._counts.get(name, 0) + len(features)

    def remove(self, name: str) -> None:
        """Forget the class `name`. Raises `UserError` where it is not known."""
        if name not in self._sums:
            raise UserError(f"class {name}: it is not known; known: {', '.join(self._sums)}.")
        del self._sums[name], self._counts[name]

    def scores(self, images: Images) -> np.ndarray:
        """Float64 `[n, C]`, the likeliest class highest. Raises `UserError` as `predict`."""
        if len(self._sums) < 2:
            has = ", ".join(self._sums) or "none"
            raise UserError(f"at least two classes are needed to tell them apart; there is {has}.")
        prototypes = np.stack([self._sums[name] / self._counts[name] for name in self._sums])
        return METRICS[self.metadata.metric](prototypes, self._features(images))

    def predict(self, images: Images, *, threshold: float = 0.0) -> Prediction:
        """The likeliest class of every image, and the probabilities of all.

        Where the likeliest has a probability below `threshold`, the name is `unknown`. Raises
        `UserError` with fewer than two classes, and for images that cannot be read.
        """
        if isinstance(images, str | Path):
            images = [images]
        scores = self.scores(images)
        probabilities = softmax(scores, self.metadata.temperature)
        best = scores.argmax(axis=1)
        names = [
            self.classes[label] if row[label] >= threshold else UNKNOWN
            for label, row in zip(best, probabilities, strict=True)
        ]
        return Prediction(names, probabilities, self.classes)

    def save(self, path: Path | str) -> None:
        """Write the classes, not the network, as JSON. Raises `StorageError`."""
        classes = {
            name: {"sum": total.tolist(), "count": self._counts[name]}
            for name, total in self._sums.items()
        }
        write_json(Path(path), {"schema": SCHEMA, **self._network(), "classes": classes})

    def load(self, path: Path | str) -> None:
        """Take the classes that `save` wrote, in place of those that are known.

        Raises `UserError` for what is no such file, and for classes of another network.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found["schema"] != SCHEMA:
                raise ValueError(f"schema {found['schema']}, this version reads {SCHEMA}")
            network = {key: found[key] for key in self._network()}
            sums = {
                str(name): np.asarray(one["sum"], dtype=np.float64)
                for name, one in found["classes"].items()
            }
            counts = {str(name): int(one["count"]) for name, one in found["classes"].items()}
            whole = min(counts.values(), default=1) >= 1 and all(
                total.shape == (self.metadata.features,) and np.isfinite(total).all()
                for total in sums.values()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{shown(path)}: no classes can be read from it ({type(error).__name__}: {error}). "
                "Give a file that FewShotClassifier.save wrote."
            ) from error
        if network != self._network():
            raise UserError(
                f"{shown(path)}: these classes were learnt with another network; its features mean "
                "something else. Learn them again with this one."
            )
        if not whole:
            raise UserError(f"{shown(path)}: it is damaged. Learn the classes again.")
        self._sums, self._counts = sums, counts

    def _network(self) -> dict[str, str]:
        """What the features of a class depend on."""
        return {"weights": self.metadata.weights, "normalize": self.metadata.normalize}

    def _features(self, images: Images) -> np.ndarray:
        features = self.embedder(self.metadata.batch(images)).astype(np.float64)
        if not np.isfinite(features).all():
            raise UserError("the network gives features that are not finite: train it again.")
        return NORMALIZATIONS[self.metadata.normalize](features, self._mean)
