"""results.json: what a finished run has measured; written last, and once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sseg_nase.files import read_json, write_json
from sseg_nase.finite import figure, finite
from sseg_nase.rundir.names import RESULTS

LAST, BEST = "last", "best"
NETWORKS = (LAST, BEST)
# The networks of a run in the order of their making, with their section of results.json.
SECTIONS: Mapping[str, str] = {
    "untrained": "fewshot_untrained",
    "pretrained": "fewshot_pretrained",
    BEST: "fewshot_best",
    LAST: "fewshot",
    "views": "fewshot_views",
    "control": "fewshot_control",
}
# Of a run that is evaluated on a closed set, in place of those.
CLOSED_SECTIONS: Mapping[str, str] = {
    network: name.replace("fewshot", "classification") for network, name in SECTIONS.items()
}


class EpisodeResult(NamedTuple):
    """One network on one episode list: mean accuracy over its episodes ± 95 % CI, in percent.

    `key`: the list, such as `digits/val/5w1s`; `network`: one of `SECTIONS`; `method`: what
    classified the queries; `top_k`: the percentage of queries, by k. None for what is not known.
    """

    key: str
    network: str
    accuracy: float
    ci95: float | None
    episodes: int | None
    method: str
    transductive: bool
    top_k: Mapping[str, float]

    def as_section(
        self, *, queries: str, doubts: Sequence[str], classes: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return what results.json says of it.

        `queries`: how they are spread over the classes; `doubts`: what speaks against the
        accuracy; `classes`: the one of lowest and the one of highest accuracy.
        """
        return {
            "accuracy": self.accuracy,
            "ci95": self.ci95,
            "episodes": self.episodes,
            "method": self.method,
            "transductive": self.transductive,
            "queries": queries,
            "doubts": list(doubts),
            "top_k": dict(self.top_k),
            **classes,
        }


class ClassResult(NamedTuple):
    """One network on a split of a closed set: shares of its images ± 95 % CI, in percent.

    `key`: the images and what classified them, such as `cifar10/test/knn`; `network`: one of
    `CLOSED_SECTIONS`; `precision`, `recall`, `f1` and `auc` are means over classes. None for what
    is not known.
    """

    key: str
    network: str
    accuracy: float
    ci95: float | None
    images: int | None
    method: str
    top_k: Mapping[str, float]
    precision: float | None
    recall: float | None
    f1: float | None
    auc: float | None

    def as_section(
        self,
        *,
        doubts: Sequence[str],
        per_class: Sequence[Mapping[str, Any]],
        roc: Sequence[Sequence[float]] | None,
        classes: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Return what results.json says of it.

        `per_class`: the figures of each; `roc`: false and true positive rates, the mean over
        classes, each against the others; for the rest see `EpisodeResult`.
        """
        figures = {k: v for k, v in self._asdict().items() if k not in ("key", "network")}
        return {
            **figures,
            "top_k": dict(self.top_k),
            "doubts": list(doubts),
            **classes,
            "per_class": [dict(one) for one in per_class],
            "roc": roc,
        }


def episode_result(key: str, network: str, value: Any) -> EpisodeResult | None:
    """Return what a section of results.json says of one list; None where that is no accuracy."""
    if not isinstance(value, dict) or not finite(value.get("accuracy")):
        return None
    episodes = figure(value.get("episodes"))
    return EpisodeResult(
        key=key,
        network=network,
        accuracy=value["accuracy"],
        ci95=value["ci95"] if finite(value.get("ci95")) else None,
        episodes=None if episodes is None else int(episodes),
        method=str(value.get("method", "")),
        transductive=bool(value.get("transductive")),
        top_k=value["top_k"] if isinstance(value.get("top_k"), dict) else {},
    )


def episode_results(
    results: Mapping[str, Any], networks: Iterable[str] = tuple(SECTIONS)
) -> list[EpisodeResult]:
    """Return the accuracies of `networks` in `results`, network by network."""
    found = (
        episode_result(key, network, value)
        for network in networks
        for key, value in section(results, SECTIONS[network]).items()
    )
    return [one for one in found if one is not None]


def class_results(
    results: Mapping[str, Any], networks: Iterable[str] = tuple(CLOSED_SECTIONS)
) -> list[ClassResult]:
    """Return what `networks` are worth on closed sets in `results`, network by network."""
    found = []
    for network in networks:
        for key, value in section(results, CLOSED_SECTIONS[network]).items():
            if not isinstance(value, dict) or not finite(value.get("accuracy")):
                continue
            images = figure(value.get("images"))
            told = {
                name: value[name] if finite(value.get(name)) else None
                for name in ("ci95", "precision", "recall", "f1", "auc")
            }
            found.append(
                ClassResult(
                    key=key,
                    network=network,
                    accuracy=value["accuracy"],
                    images=None if images is None else int(images),
                    method=str(value.get("method", "")),
                    top_k=value["top_k"] if isinstance(value.get("top_k"), dict) else {},
                    **told,
                )
            )
    return found


def accuracies_of(results: Mapping[str, Any], network: str) -> Mapping[str, Any]:
    """Return the accuracies of a network of `SECTIONS` by key, on episodes or on a closed set."""
    return section(results, SECTIONS[network]) or section(results, CLOSED_SECTIONS[network])


def write_results(run: Path, results: Mapping[str, Any]) -> None:
    """Write results.json, whole or not at all. Raises `StorageError`."""
    write_json(run / RESULTS, results)


def read_results(run: Path) -> dict[str, Any] | None:
    """Return what results.json holds; None where there is none that can be read."""
    return read_json(run / RESULTS)


def has_results(run: Path) -> bool:
    """Tell whether a run has written its results."""
    return (run / RESULTS).exists()


def section(results: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of results, or of a stored config; nothing where it is not there."""
    found = results.get(name)
    return found if isinstance(found, dict) else {}


def doubts_of(result: Mapping[str, Any]) -> list[str]:
    """What speaks against an accuracy of results.json, a clause each.

    An older version has not written any; that all episodes agree is seen all the same.
    """
    written = result.get("doubts")
    if isinstance(written, list):
        return [str(doubt) for doubt in written]
    accuracy, ci95, episodes = (figure(result.get(key)) for key in ("accuracy", "ci95", "episodes"))
    agree = accuracy is not None and accuracy < 100 and ci95 == 0 and (episodes or 0) > 1
    return ["every episode has the same accuracy"] if agree else []
