"""Growth in a fixed order: at given shares of the epochs every stage gets one convolution more.

Nothing is tried and nothing compared. Depth grows evenly, early and seldom, while the learning rate
is high, and the final network has the rest of the epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sseg_nase.config.groups.evolution import LATEST_EXPANSION, EvolutionConfig, Planned, Trials
from sseg_nase.data.random import derive
from sseg_nase.errors import UserError
from sseg_nase.nets.mutations.grow import grow_stages
from sseg_nase.nets.mutations.operator import Caps
from sseg_nase.training.interventions import Evolve
from sseg_nase.training.state import Evolving
from sseg_nase.training.surgery import Decision, Intervention


class Expand(Intervention):
    """`grow_stages` whenever an expansion is due, until every stage has its blocks.

    With `evolution.drawn` every block gets a random stage, the baseline of balanced growth.

    One that could not be done when it was due, because another mutation was on probation, is made
    up for at the next occasion, but never after `LATEST_EXPANSION` of the epochs. The function
    stays as it was, so there is no probation of its own.
    """

    name = "evolution"

    def __init__(self, evolution: Planned, seed: int) -> None:
        self.shares, self.most, self.seed = evolution.expand_at, evolution.blocks_per_stage, seed
        self.caps = Caps.of(evolution)
        self.drawn = evolution.drawn
        self.rounds = 0  # of the expansions that are over

    def observe(self, state: Evolving) -> None:
        """Nothing to watch: the epochs alone decide."""

    def decide(self, state: Evolving) -> Decision:
        """One convolution more in every stage when it is due, as far as the caps allow."""
        done, epochs = state.progress.epoch + 1, state.epochs
        due = [max(1, round(share * epochs)) for share in self.shares]
        if self.rounds == sum(at <= done for at in due):
            return Decision(None, {"reason": "no expansion is due"})
        trigger: dict[str, Any] = {"expansion": self.rounds + 1, "of": len(due)}
        self.rounds += 1
        if done > round(LATEST_EXPANSION * epochs):
            reason = f"an expansion is due, but over {LATEST_EXPANSION:.0%} of the epochs are done"
            return Decision(None, {"reason": reason, **trigger})
        architecture = state.networks.architecture
        seed = derive(self.seed, self.name, state.progress.epoch)
        try:
            expansion = grow_stages(architecture, most=self.most, drawn=self.drawn, seed=seed)
        except UserError:  # nothing is left to grow
            whole = "the stages have" if self.drawn else "every stage has"
            mean = " on average" if self.drawn else ""
            reason = f"{whole} {self.most} blocks or more{mean}"
            return Decision(None, {"reason": reason, **trigger})
        violated = self.caps.violation(expansion.after)
        if violated is not None:
            return Decision(None, {"reason": f"the expansion is over a cap: {violated}", **trigger})
        return Decision(expansion, {"reason": "an expansion is due", **trigger})

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.rounds = state["rounds"]


ORDERS: Mapping[type[EvolutionConfig], Callable[[Any, int], Intervention]] = {
    Trials: Evolve,
    Planned: Expand,
}
