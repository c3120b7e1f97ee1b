"""What somebody else's package defines, in one file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from sseg_nase.config.groups.optimizer import OptimizerConfig
from sseg_nase.config.options import option


@dataclass(frozen=True)
class Lion(OptimizerConfig):
    """Signs of a moving average (Chen et al. 2023)."""

    mixing: Annotated[list[float], option(least=0, most=1)]

    def wrong(self) -> Iterator[str]:
        if len(self.mixing) != 2:
            yield f"optimizer.mixing={self.mixing}: two numbers are needed."
