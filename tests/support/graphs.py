"""What autograd has recorded."""

from __future__ import annotations

from torch import Tensor


def nodes(out: Tensor) -> list[str]:
    """Names of all operations in the graph of `out`."""
    found, waiting = {}, [out.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found[node] = node.name()
            waiting += [following for following, _ in node.next_functions]
    return list(found.values())
