"""Training through a mutation: with the optimizer's state carried, the loss goes on as before.

Set SSEG_NASE_FIGURES to a folder to keep the figure.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sseg_nase.config.compose import load
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.views import make_views
from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    build_learner,
    load_moments,
    named_moments,
)
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner, ProjectionHead
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.ssl.objectives import nt_xent

SIZE, BATCH = 16, 64
BEFORE, AFTER, WINDOW = 50, 20, 20
TEMPERATURE = 0.2
LR = 1e-2  # high, so that what the optimizer knows matters
SEEDS = (0, 1, 2)
SEED_NETWORK = Architecture.seed([16, 32, 64], resolution=SIZE)
MUTATIONS = {
    "GROW": grow(SEED_NETWORK, seed=1),
    "WIDEN": widen(SEED_NETWORK, 1, noise=0.01, seed=1),
}

Batches = list[tuple[Tensor, Tensor]]


class Course(NamedTuple):
    """Losses of one seed: `before` `[BEFORE]`, and `[AFTER]` on the same batches for each way on.

    `unchanged`: no mutation; `carried` and `dropped`: by kind of mutation.
    """

    before: Tensor
    unchanged: Tensor
    carried: dict[str, Tensor]
    dropped: dict[str, Tensor]


def drawn_batches(seed: int) -> Batches:
    count = BEFORE + AFTER
    images = render("TEXTURE", torch.arange(count * BATCH), seed=seed, image_size=SIZE)
    first, second = make_views(images, load([]).views, image_size=SIZE, seed=seed)
    return list(zip(first.split(BATCH), second.split(BATCH), strict=True))


def make_optimizer(learner: Learner) -> torch.optim.Optimizer:
    return torch.optim.AdamW(learner.parameters(), lr=LR)


def train(learner: Learner, optimizer: torch.optim.Optimizer, batches: Batches) -> Tensor:
    losses = []
    learner.train()
    for views in batches:
        z1, z2 = learner(torch.cat(views))[1].chunk(2)
        loss = nt_xent(z1, z2, TEMPERATURE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses)


def train_on(
    mutation: Mutation, state: TrainingState, like: Learner, batches: Batches, *, carried: bool
) -> Tensor:
    after = apply(mutation, state)
    learner = build_learner(mutation, after, like=like)
    optimizer = make_optimizer(learner)
    if carried:
        load_moments(optimizer, learner, after.moments)
    return train(learner, optimizer, batches)


def run(seed: int) -> Course:
    generator = torch.Generator().manual_seed(seed)
    learner = Learner(
        EvolvableCNN(SEED_NETWORK, generator=generator),
        ProjectionHead(SEED_NETWORK.features, 64, 64, generator=generator),
    )
    optimizer, batches = make_optimizer(learner), drawn_batches(seed)
    before = train(learner, optimizer, batches[:BEFORE])
    state = TrainingState(learner.state_dict(), None, named_moments(optimizer, learner))
    carried, dropped = (
        {
            kind: train_on(mutation, state, learner, batches[BEFORE:], carried=keep)
            for kind, mutation in MUTATIONS.items()
        }
        for keep in (True, False)
    )
    unchanged = train(learner, optimizer, batches[BEFORE:])  # last: it moves the state
    return Course(before, unchanged, carried, dropped)


@pytest.fixture(scope="module")
def courses() -> list[Course]:
    return [run(seed) for seed in SEEDS]


@pytest.mark.parametrize("kind", MUTATIONS)
def test_with_the_state_carried_the_loss_stays_within_its_noise(
    courses: list[Course], kind: str
) -> None:
    for course in courses:
        before, after = course.before[-WINDOW:], course.carried[kind]
        noise = ((before.var() + after.var()) / WINDOW).sqrt()  # of the difference of the means
        assert after.mean() <= before.mean() + 3 * noise
        assert after.max() <= before.mean() + 4 * before.std()
        # On the same batches hardly anything tells it from a run that was never mutated.
        assert (after - course.unchanged).abs().mean() <= 0.25 * before.std()


@pytest.mark.parametrize("kind", MUTATIONS)
def test_with_the_state_dropped_it_is_higher(courses: list[Course], kind: str) -> None:
    """Otherwise the test above would not show that carrying the state does anything."""
    for course in courses:
        assert course.dropped[kind].mean() > course.carried[kind].mean()
        away = {
            name: (losses - course.unchanged).abs().mean()
            for name, losses in (("kept", course.carried[kind]), ("lost", course.dropped[kind]))
        }
        assert away["lost"] > 3 * away["kept"]


def draw(courses: list[Course]) -> Figure:
    """Loss around the mutation, mean over the seeds; band: ± 1 deviation of the window before."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    before = torch.stack([course.before[-WINDOW:] for course in courses]).mean(0)
    level, noise = before.mean().item(), before.std().item()
    for axes, kind in zip(figure.subplots(1, len(MUTATIONS), sharey=True), MUTATIONS, strict=True):
        axes.axhspan(
            level - noise, level + noise, color="0.9", label="noise of the 20 steps before"
        )
        axes.plot(range(-WINDOW, 0), before, color="0.3")
        ways = {
            "optimizer state carried": ("C0", "-", [c.carried[kind] for c in courses]),
            "optimizer state dropped": ("C3", "-", [c.dropped[kind] for c in courses]),
            "no mutation": ("k", ":", [c.unchanged for c in courses]),
        }
        for label, (colour, line, losses) in ways.items():
            axes.plot(range(AFTER), torch.stack(losses).mean(0), line, color=colour, label=label)
        axes.axvline(-0.5, color="0.6", linewidth=0.8)
        axes.set(title=f"{kind} at step 0", xlabel="optimizer step")
    figure.axes[0].set_ylabel(f"NT-Xent, mean of {len(courses)} seeds")
    figure.axes[0].legend(fontsize="small")
    return figure


def test_the_figure_shows_both_ways(courses: list[Course], tmp_path: Path) -> None:
    for folder in (tmp_path, Path(os.environ.get("SSEG_NASE_FIGURES", tmp_path))):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "training_through_a_mutation.png"
        draw(courses).savefig(path, dpi=120)
        assert path.read_bytes().startswith(b"\x89PNG")
