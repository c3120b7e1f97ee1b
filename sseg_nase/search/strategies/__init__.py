"""Strategies: pure functions of (space, log, how many, seed), one file each.

Whatever a strategy knows it reads from the log. Its own fields are its settings.
"""

from sseg_nase.search.strategies.asha import ASHA
from sseg_nase.search.strategies.bananas import Bananas
from sseg_nase.search.strategies.evolution import Evolution
from sseg_nase.search.strategies.genetic import Genetic, active_diversity, diversity
from sseg_nase.search.strategies.gp import GP
from sseg_nase.search.strategies.grid import Grid
from sseg_nase.search.strategies.halving import Hyperband, SuccessiveHalving
from sseg_nase.search.strategies.local import LocalSearch
from sseg_nase.search.strategies.nsga2 import NSGA2
from sseg_nase.search.strategies.pnas import PNAS
from sseg_nase.search.strategies.random import RandomSearch
from sseg_nase.search.strategies.reinforce import Reinforce
from sseg_nase.search.strategies.screened import Screened
from sseg_nase.search.strategies.tpe import TPE

__all__ = [
    "ASHA",
    "GP",
    "NSGA2",
    "PNAS",
    "TPE",
    "Bananas",
    "Evolution",
    "Genetic",
    "Grid",
    "Hyperband",
    "LocalSearch",
    "RandomSearch",
    "Reinforce",
    "Screened",
    "SuccessiveHalving",
    "active_diversity",
    "diversity",
]
