"""`evaluator`: how `task=search` measures a candidate. Built in `sseg_nase.searches`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Optional

from sseg_nase.config.options import Option, group, option, register

PREDICTORS = ("ridge", "gp", "mlp", "boosting")


@group("evaluator")
@dataclass(frozen=True)
class EvaluatorConfig(Option):
    """What all evaluators have."""


@register("evaluator", "run")
@dataclass(frozen=True)
class OfRuns(EvaluatorConfig):
    """A run of the program per candidate."""


@register("evaluator", "tabular")
@dataclass(frozen=True)
class OfTable(EvaluatorConfig):
    """Scores from the rows of a table."""

    table: Annotated[str, option(path="the csv file of a table, plain or .xz")]
    id_column: Annotated[str, option(text="the column that names the point")]
    form: Annotated[str, option(text="the encoding in which id_column names it")]
    scores: dict[str, str]
    seconds: Annotated[Optional[str], option(text="the column with the seconds of a training")]
    protocol: Annotated[str, option(choices=("validation", "compare_strategies"))]


@register("evaluator", "proxy")
@dataclass(frozen=True)
class OfProxies(EvaluatorConfig):
    """Zero-cost scores of the network before any training."""

    proxies: Annotated[list[str], option(text="a zero-cost score")]
    batch: Annotated[int, option(least=2)]
    draws: Annotated[int, option(least=1)]


@register("evaluator", "predicted")
@dataclass(frozen=True)
class OfPredictor(EvaluatorConfig):
    """What a predictor says that has learnt from another search."""

    learnt_from: Annotated[str, option(path="the folder of a search")]
    predictor: Annotated[str, option(choices=PREDICTORS)]


@register("evaluator", "inherited")
@dataclass(frozen=True)
class OfInherited(EvaluatorConfig):
    """Training on from the weights of the parent candidate."""


@register("evaluator", "own")
@dataclass(frozen=True)
class OwnEvaluator(EvaluatorConfig):
    """One of the user's, from a file of theirs."""

    target: Annotated[str, option(text="FILE.py:NAME or MODULE:NAME")]
    settings: dict[str, Any]
