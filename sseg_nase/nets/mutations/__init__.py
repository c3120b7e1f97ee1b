"""Operators: what can be done to a network, one file each.

An operator is registered by `register` when its file is imported; `operator` finds it by the kind
that records name, `proposals` by its name in `evolution.operators`.
"""

from sseg_nase.nets.mutations import choose, grow, prune, widen

__all__ = ["choose", "grow", "prune", "widen"]
