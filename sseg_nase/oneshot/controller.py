"""The controller of ENAS: an LSTM that samples the candidates of one gate after the other.

Pham et al., ICML 2018. It learns by REINFORCE: ∇θ = Σ_t ∇ log π(a_t) (R − b) with a moving average
b of the rewards as baseline; the entropy of what it samples is added to the reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

SPREAD = 0.1  # of all its parameters at the start, uniformly
SQUASHED = 2.5  # by which the logits of operations are divided beside the tanh constant


class Drawn(NamedTuple):
    """`picks` by gate, their log-probability and the sum of the gates' entropies."""

    picks: dict[str, int]
    log_probability: Tensor
    entropy: Tensor


class Controller(nn.Module):
    """Draws a candidate of every gate, in the order of the names. `choices`: how many each has."""

    def __init__(
        self,
        choices: Mapping[str, int],
        *,
        hidden: int = 64,
        tanh_constant: float = 1.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.choices = {name: choices[name] for name in sorted(choices)}
        self.scale = tanh_constant / SQUASHED
        most = max(self.choices.values())
        self.begin = nn.Parameter(torch.empty(1, hidden))
        self.embedded = nn.Parameter(torch.empty(most, hidden))
        self.cell = nn.LSTMCell(hidden, hidden)
        self.logits = nn.Linear(hidden, most, bias=False)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -SPREAD, SPREAD, generator=generator)

    def forward(self, generator: torch.Generator | None = None) -> Drawn:
        """Draw from `generator`; None: of every gate the likeliest, given those before."""
        read: Tensor = self.begin
        state = None
        picks: dict[str, int] = {}
        total, entropy = self.begin.new_zeros(()), self.begin.new_zeros(())
        for name, count in self.choices.items():
            hidden, memory = self.cell(read, state)
            state = hidden, memory
            scores = (self.scale * self.logits(hidden)[0, :count].tanh()).log_softmax(0)
            p = scores.exp()
            if generator is None:
                pick = int(scores.argmax())
            else:
                pick = int(torch.multinomial(p.detach().cpu(), 1, generator=generator))
            picks[name] = pick
            total = total + scores[pick]
            entropy = entropy - (p * scores).sum()
            read = self.embedded[pick][None]
        return Drawn(picks, total, entropy)
