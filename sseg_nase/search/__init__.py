"""Architecture search: a search is a log.

`log` is the append-only record of what was asked and what came out. A strategy is a pure function
from a space and a log to the next candidates, an evaluator measures candidates, and `loop` passes
one to the other. Resume, replay, caching, parallel evaluation and reports follow from the log.
"""

from sseg_nase.search import predictors, strategies
from sseg_nase.search.budget import Budget
from sseg_nase.search.evaluators.clock import Clock
from sseg_nase.search.evaluators.function import Function
from sseg_nase.search.evaluators.inherited import Inherited
from sseg_nase.search.evaluators.proxy import Predicted, Proxy
from sseg_nase.search.evaluators.tabular import Table, Tabular
from sseg_nase.search.log import Candidate, Cost, Log, Scored
from sseg_nase.search.loop import known_scores, search
from sseg_nase.search.objectives import Objectives

__all__ = [
    "Budget",
    "Candidate",
    "Clock",
    "Cost",
    "Function",
    "Inherited",
    "Log",
    "Objectives",
    "Predicted",
    "Proxy",
    "Scored",
    "Table",
    "Tabular",
    "known_scores",
    "predictors",
    "search",
    "strategies",
]
