"""The controller of ENAS: what it draws is what it says, and rewards move it."""

from __future__ import annotations

import pytest
import torch

from sseg_nase.oneshot.controller import Controller

CHOICES = {"b": 2, "a": 3, "c": 2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_log_probability_and_entropy_are_those_of_the_draws() -> None:
    controller = Controller(CHOICES, hidden=5, generator=seeded()).double()
    drawn = controller(seeded(1))
    assert list(drawn.picks) == ["a", "b", "c"]  # by name, whatever the order of the choices
    read, state, total, entropy = controller.begin, None, 0.0, 0.0
    for name, pick in drawn.picks.items():
        state = controller.cell(read, state)
        logits = 1.1 / 2.5 * torch.tanh(state[0] @ controller.logits.weight.T)[0, : CHOICES[name]]
        p = torch.exp(logits) / torch.exp(logits).sum()
        total += p[pick].log()
        entropy -= sum((q * q.log()).item() for q in p)
        read = controller.embedded[pick : pick + 1]
    assert drawn.log_probability.item() == pytest.approx(total.item())
    assert drawn.entropy.item() == pytest.approx(entropy)


def test_it_begins_alike_for_the_same_seed_and_within_its_range() -> None:
    one, other = (Controller(CHOICES, generator=seeded(4)) for _ in range(2))
    assert all(map(torch.equal, one.parameters(), other.parameters()))
    largest = max(p.abs().max().item() for p in one.parameters())
    assert 0.09 < largest <= 0.1


def test_what_is_rewarded_becomes_likelier() -> None:
    controller = Controller(CHOICES, hidden=8, generator=seeded())
    optimizer = torch.optim.Adam(controller.parameters(), lr=0.05)
    generator = seeded(1)
    for _ in range(60):
        draws = [controller(generator) for _ in range(4)]
        loss = torch.stack([-d.log_probability * (float(d.picks["a"] == 2) - 0.5) for d in draws])
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert controller().picks["a"] == 2
    assert sum(controller(generator).picks["a"] == 2 for _ in range(50)) > 20
