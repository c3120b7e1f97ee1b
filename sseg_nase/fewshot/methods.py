"""The few-shot methods that a config can choose, behind one signature.

A method gets the support `[E, N, K, D]` and the queries `[E, M, D]` of E episodes and gives scores
`[E, M, N]`, the highest for the class that it takes. Only the order within a query counts; of those
here, all but prototype and ridge give log-probabilities. A method with a trained head is the same
object, made around that head: `Method(head_scores, ...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from sseg_nase.config.groups.evaluation import EvaluationConfig, MethodConfig
from sseg_nase.config.options import imported, of_this_package, options_of
from sseg_nase.fewshot.classifiers import matching_scores, prototype_scores
from sseg_nase.fewshot.linear import linear_scores, logistic_scores, ridge_scores
from sseg_nase.fewshot.transport import transport_scores


@dataclass(frozen=True)
class Sizes:
    """What decides how much memory an episode takes: N ways, K shots, M queries in all, D."""

    ways: int
    shots: int
    queries: int
    features: int

    @property
    def support(self) -> int:
        """Support images of an episode."""
        return self.ways * self.shots


@dataclass(frozen=True)
class Method:
    """A few-shot method.

    `label`: its name and variant, as results tell it. `entries`: how many float32 it holds at once
    per episode, with the support and the queries that it is given. `transductive`: whether it looks
    at the queries together.
    """

    scores: Callable[[Tensor, Tensor, EvaluationConfig], Tensor]
    label: Callable[[EvaluationConfig], str]
    entries: Callable[[Sizes], int]
    transductive: bool = False


def marginal(evaluation: EvaluationConfig) -> str:
    """Which shares of the queries sinkhorn takes the classes to have: `uniform` or any, `free`."""
    known = {"balanced": "uniform", "dirichlet": "free"}[evaluation.query_balance]
    return known if evaluation.sinkhorn.marginal == "auto" else evaluation.sinkhorn.marginal


def _prototype(support: Tensor, query: Tensor, evaluation: EvaluationConfig) -> Tensor:
    return prototype_scores(support, query, evaluation.metric)


def _matching(support: Tensor, query: Tensor, evaluation: EvaluationConfig) -> Tensor:
    return matching_scores(support, query, evaluation.matching.temperature)


def _ridge(support: Tensor, query: Tensor, evaluation: EvaluationConfig) -> Tensor:
    return ridge_scores(support, query, evaluation.ridge.regularization)


def _logistic(support: Tensor, query: Tensor, evaluation: EvaluationConfig) -> Tensor:
    return logistic_scores(support, query, evaluation.logistic.regularization)


def _linear(support: Tensor, query: Tensor, evaluation: EvaluationConfig) -> Tensor:
    options = evaluation.linear
    return linear_scores(
        support,
        query,
        steps=options.steps,
        lr=options.lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
    )


def _sinkhorn(support: Tensor, query: Tensor, evaluation: EvaluationConfig) -> Tensor:
    options = evaluation.sinkhorn
    return transport_scores(
        support,
        query,
        uniform=marginal(evaluation) == "uniform",
        power=options.power,
        entropy=options.entropy,
        scalings=options.scalings,
        updates=options.updates,
        update_rate=options.update_rate,
    )


# The entries count the tensors that live at the same time in the worst moment; tests hold the
# memory that they lead to against what is measured.
def _of_prototype(s: Sizes) -> int:
    """The features twice (gathered and centred), and the scores."""
    return 2 * (s.support + s.queries + s.ways) * s.features + 4 * s.queries * s.ways


def _of_matching(s: Sizes) -> int:
    return (2 * s.support + s.queries) * s.features + s.queries * (4 * s.support + 2 * s.ways)


def _of_solving(s: Sizes) -> int:
    """Normal equations of the smaller side in float64, and their right side."""
    side = min(s.support, s.features)
    given = (s.support + s.queries + 2 * s.ways) * s.features
    return given + 7 * side**2 + 6 * side * s.ways + 2 * s.queries * s.ways


def _of_logistic(s: Sizes) -> int:
    """First the basis of the support; then the reduced support and 12 weights, in float64."""
    S, D = s.support, s.features
    basis = S * D if S < D else 0
    reduced = min(S, D) + 1
    fitting = basis + 4 * S * reduced + 24 * s.ways * (S + reduced)
    return (S + s.queries) * D + max(2 * basis + 2 * S**2, fitting) + 3 * s.queries * s.ways


def _of_linear(s: Sizes) -> int:
    """The kernel and 10 tensors of coefficients in float64; then the weights and scores."""
    fitting = 3 * s.support**2 + 20 * s.support * s.ways
    scoring = 2 * s.ways * s.features + 3 * s.queries * s.ways
    return (s.support + s.queries) * s.features + 2 * s.support * s.ways + max(fitting, scoring)


def _of_transport(s: Sizes) -> int:
    """The features as given and, while they are transformed, three more copies."""
    return 4 * (s.support + s.queries) * s.features + 12 * s.queries * s.ways


def prototype() -> Method:
    """The few-shot method `prototype`: the nearest mean of a class, by `evaluation.metric`."""
    return Method(_prototype, lambda e: f"prototype/{e.metric}", _of_prototype)


def matching() -> Method:
    """The few-shot method `matching`: attention over the support (Vinyals et al. 2016)."""
    return Method(_matching, lambda _: "matching", _of_matching)


def ridge() -> Method:
    """The few-shot method `ridge`: ridge regression on the support."""
    return Method(_ridge, lambda _: "ridge", _of_solving)


def logistic() -> Method:
    """The few-shot method `logistic`: logistic regression on the support."""
    return Method(_logistic, lambda _: "logistic", _of_logistic)


def linear() -> Method:
    """The few-shot method `linear`: a linear layer, trained on the support by SGD."""
    return Method(_linear, lambda _: "linear", _of_linear)


def sinkhorn() -> Method:
    """The few-shot method `sinkhorn`: optimal transport of all queries together."""
    return Method(_sinkhorn, lambda e: f"sinkhorn/{marginal(e)}", _of_transport, transductive=True)


def method_named(name: str) -> Method:
    """The method that `evaluation.method` names, one that needs no head.

    Raises `UserError` where what another package has for it cannot be imported.
    """
    made: Method = imported(options_of(MethodConfig)[name].made_by)()
    return made


# Those of this package, by the name that the configuration has for them.
METHODS: Mapping[str, Method] = {
    name: method_named(name)
    for name, kind in options_of(MethodConfig).items()
    if of_this_package(kind) and not kind.headed
}
