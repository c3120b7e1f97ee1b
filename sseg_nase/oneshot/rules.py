"""The one-shot strategies: which paths a step trains, how what chooses is trained, what is derived.

One class each, `RULES` by the option of `strategy`. The loop is `oneshot.training`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sseg_nase.config.groups.oneshot import (
    ENAS,
    Darts,
    Gated,
    OneShot,
    PCDarts,
    Proxyless,
    RandomSharing,
)
from sseg_nase.counting import BACKWARD
from sseg_nase.data.random import derive as derive_seed
from sseg_nase.errors import UserError
from sseg_nase.evolution.operators import load_moments, named_moments
from sseg_nase.oneshot.bilevel import first_order, second_order
from sseg_nase.oneshot.controller import Controller
from sseg_nase.oneshot.curvature import largest_eigenvalue, rising
from sseg_nase.oneshot.deriving import TRIES, Picks, derive
from sseg_nase.oneshot.gates import Gates
from sseg_nase.oneshot.objectives import Seen
from sseg_nase.spaces.containing import Containing

PASS = 1 + BACKWARD  # forward and backward
ALPHA, WEIGHTS, REWARD, DERIVE, CURVATURE = "alpha", "weights", "reward", "derive", "curvature"


class Place(Protocol):
    """Where a training is."""

    @property
    def epoch(self) -> int:
        """Epochs that are done."""

    @property
    def step(self) -> int:
        """Steps of the weights that are done, in all epochs."""


class Training(Protocol):
    """What a rule knows of the training: `oneshot.training` says more."""

    latencies: Mapping[str, Sequence[float]]
    most_latency: float

    @property
    def learner(self) -> nn.Module:
        """What is trained: the supernet with the heads that the loss needs."""

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of its weights."""

    @property
    def rate(self) -> float:
        """The learning rate of its weights now."""

    @property
    def progress(self) -> Place:
        """Where it is."""

    @property
    def weights(self) -> list[nn.Parameter]:
        """What is trained of the learner."""

    def generator(self, purpose: str) -> torch.Generator:
        """For the random numbers of this step."""

    def validation(self) -> Seen:
        """The next batch of the other half."""

    def loss(self, seen: Seen) -> Tensor:
        """Of the learner as it is."""

    def reward(self, picks: Picks) -> float:
        """Of a network on the next batch of the other half."""

    def without_tracking(self) -> AbstractContextManager[None]:
        """Within, no BN tracks statistics."""

    def spend(self, picks: Picks | None, seen: Seen, passes: int) -> None:
        """Count what passes have cost; None: of the whole supernet."""

    def allowed(self, picks: Picks) -> bool:
        """Whether a network is within all caps."""

    def latency(self, picks: Picks) -> float | None:
        """Of a network, in ms, measured here; None where nothing measures it."""

    def key(self, picks: Picks) -> str:
        """The same for networks that are the same function."""


class Rule:
    """What a strategy does; this one trains nothing beside the weights."""

    mixes = False  # whether the supernet computes all candidates at once

    def __init__(self, options: Any, gates: Gates, seed: int, containing: Containing) -> None:
        self.options, self.gates, self.containing = options, gates, containing

    @contextmanager
    def training_weights(self, training: Training) -> Iterator[Picks | None]:
        """Within, the supernet is as a step of the weights trains it; the picks, None: no picks."""
        raise NotImplementedError
        yield

    def train(self, training: Training, seen: Seen) -> None:
        """A step of what chooses, before the weights' own step on `seen`."""

    def close_epoch(self, training: Training) -> dict[str, float]:
        """At the end of an epoch; figures for its record."""
        return {}

    def derived(self, training: Training) -> list[Picks]:
        """What is evaluated at the end of an epoch."""
        raise NotImplementedError

    def stopped(self, records: Sequence[Mapping[str, Any]]) -> tuple[str, int] | None:
        """Why the search ends after the last of `records`, and which record has the answer."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: tensors and plain data."""
        return {"gates": self.gates.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint."""
        self.gates.load_state_dict(dict(state["gates"]))


class GatedRule(Rule):
    """α (and β) in an optimizer of their own, in the order of the names of the gates."""

    options: Gated

    def __init__(self, options: Gated, gates: Gates, seed: int, containing: Containing) -> None:
        super().__init__(options, gates, seed, containing)
        self.optimizer = torch.optim.Adam(
            gates.parameters(),
            lr=options.alpha_lr,
            betas=(float(options.alpha_betas[0]), float(options.alpha_betas[1])),
            weight_decay=options.alpha_weight_decay,
        )

    @property
    def parameters(self) -> list[Tensor]:
        """All that is trained beside the weights."""
        return list(self.gates.parameters())

    def train(self, training: Training, seen: Seen) -> None:
        """A step of α, once the weights have warmed up."""
        if training.progress.epoch >= self.options.warmup_epochs:
            self.step(training, seen)

    def step(self, training: Training, seen: Seen) -> None:
        """A step of α."""
        raise NotImplementedError

    def apply(self, gradients: Sequence[Tensor]) -> None:
        """A step of the optimizer by these gradients: no clipping, and no other decay."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def disturbed(self, training: Training) -> AbstractContextManager[None]:
        """Within, α is moved by noise, where the options ask for it."""
        if not self.options.perturbation:
            return nullcontext()
        return self.gates.perturbed(self.options.perturbation, training.generator("perturbed"))

    def close_epoch(self, training: Training) -> dict[str, float]:
        """The largest eigenvalue of the Hessian in α, where a brake asks for it."""
        if self.options.eigenvalue_ratio is None:
            return {}
        seen, passes = training.validation(), 0

        def loss() -> Tensor:
            nonlocal passes
            passes += 1
            return training.loss(seen)

        with training.without_tracking():
            found = largest_eigenvalue(list(self.gates.alphas), loss, training.generator(CURVATURE))
        training.spend(None, seen, PASS * passes)
        return {"eigenvalue": found}

    def derived(self, training: Training) -> list[Picks]:
        """The network with the largest α (and β) of all that are allowed."""
        scores = self.containing.scores(self.gates.scores())
        most = training.most_latency
        return [derive(scores, training.allowed, latency=training.latency, most=most)]

    def stopped(self, records: Sequence[Mapping[str, Any]]) -> tuple[str, int] | None:
        """By the number of skip connections, or by the curvature."""
        options, last = self.options, len(records) - 1
        if last < options.warmup_epochs:
            return None
        counts = [record["scores"]["skips"] for record in records]
        most = options.stop_at_skips
        if most is not None and counts[-1] >= most:
            fewer = [number for number, count in enumerate(counts) if count < most]
            return f"{counts[-1]} skip connections, strategy.stop_at_skips={most}", (
                fewer[-1] if fewer else last
            )
        if options.eigenvalue_ratio is None:
            return None
        values = [record["scores"]["eigenvalue"] for record in records[options.warmup_epochs :]]
        if rising(values, options.eigenvalue_ratio, options.eigenvalue_window):
            return (
                f"the eigenvalue has risen to {values[-1]:.3g}, "
                f"strategy.eigenvalue_ratio={options.eigenvalue_ratio:g}",
                last - options.eigenvalue_window,
            )
        return None

    def state_dict(self) -> dict[str, Any]:
        """With the optimizer's state by the names of the parameters."""
        moments = named_moments(self.optimizer, self.gates)
        return {**super().state_dict(), "moments": moments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint."""
        super().load_state_dict(state)
        load_moments(self.optimizer, self.gates, state["moments"])


class Differentiable(GatedRule):
    """DARTS and PC-DARTS: all candidates at once."""

    options: Darts
    mixes = True

    @contextmanager
    def training_weights(self, training: Training) -> Iterator[Picks | None]:
        """All candidates, weighed by the gates."""
        with self.disturbed(training):
            yield None

    def step(self, training: Training, seen: Seen) -> None:
        """By the gradient of the validation loss, of the first or the second order."""
        val = training.validation()
        with training.without_tracking():
            if self.options.order == "first":
                _, gradients = first_order(self.parameters, lambda: training.loss(val))
                training.spend(None, val, PASS)
            else:
                state = training.optimizer.state
                _, gradients = second_order(
                    training.learner,
                    training.weights,
                    self.parameters,
                    lambda: training.loss(seen),
                    lambda: training.loss(val),
                    rate=training.rate,
                    momentum=self.options.momentum,
                    buffers=[state[w].get("momentum_buffer") for w in training.weights],
                    weight_decay=self.options.weight_decay,
                )
                training.spend(None, val, PASS)
                training.spend(None, seen, 3 * PASS)
        self.apply(gradients)


class TwoPaths(GatedRule):
    """ProxylessNAS: one path for the weights, two of each gate compared for α.

    `latencies`: by gate, milliseconds of each candidate in all its places, less those of the first.
    `pressure`: what the weight of the latency has grown to, doubled after every epoch whose
    preferred network is above a cap.
    """

    options: Proxyless

    def __init__(self, options: Proxyless, gates: Gates, seed: int, containing: Containing) -> None:
        super().__init__(options, gates, seed, containing)
        self.pressure = 1.0

    @contextmanager
    def training_weights(self, training: Training) -> Iterator[Picks | None]:
        """One path, sampled by softmax(α)."""
        picks = self.gates.sample(training.generator(WEIGHTS))
        with self.gates.picked(picks):
            yield picks

    def step(self, training: Training, seen: Seen) -> None:
        """By the gradients of two binary gates each, and of the expected latency."""
        if training.progress.step % self.options.alpha_interval:
            return
        val = training.validation()
        pairs = self.gates.sample_pairs(training.generator(ALPHA))
        active = {name: pair.candidates[pair.active] for name, pair in pairs.items()}
        parameters = self.parameters
        with training.without_tracking(), self.gates.picked(pairs):
            loss = training.loss(val)
            if self.options.latency_weight:
                target = self.options.latency_target
                assert target is not None
                expected = expected_latency(self.gates, training.latencies)
                loss = loss + self.pressure * self.options.latency_weight * expected / target
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        training.spend(active, val, PASS + 1)  # of the path beside it the outputs alone
        with self.gates.keeping_mass(pairs):
            self.apply(
                [
                    torch.zeros_like(p) if g is None else g
                    for p, g in zip(parameters, found, strict=True)
                ]
            )

    def close_epoch(self, training: Training) -> dict[str, float]:
        """More pressure where the network that the gates prefer is too slow."""
        found = super().close_epoch(training)
        if not self.options.latency_weight:
            return found
        scores = self.containing.scores(self.gates.scores())
        preferred = derive(scores, lambda picks: True)
        if not training.allowed(preferred):
            self.pressure *= 2
        expected = expected_latency(self.gates, training.latencies)
        return {**found, "expected_latency_change": expected.item(), "pressure": self.pressure}

    def state_dict(self) -> dict[str, Any]:
        """With the pressure."""
        return {**super().state_dict(), "pressure": self.pressure}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint."""
        super().load_state_dict(state)
        self.pressure = state["pressure"]


def expected_latency(gates: Gates, latencies: Mapping[str, Sequence[float]]) -> Tensor:
    """Σ over gates and candidates of softmax(α) times the candidate's latency, a scalar."""
    terms = [
        (gates.weights(name) * gates.alpha(name).new_tensor(times)).sum()
        for name, times in latencies.items()
    ]
    return torch.stack(terms).sum()


class Uniform(Rule):
    """Random sharing: any path with the same probability, and no training of what chooses."""

    options: RandomSharing

    @contextmanager
    def training_weights(self, training: Training) -> Iterator[Picks | None]:
        """One path, any."""
        picks = self.draw(training.generator(WEIGHTS))
        with self.gates.picked(self.containing.candidates(picks)):
            yield picks

    def draw(self, generator: torch.Generator) -> Picks:
        """A network at random, as those that are evaluated at the end."""
        return {
            name: int(torch.multinomial(torch.ones(len(alternatives)), 1, generator=generator))
            for name, alternatives in sorted(self.containing.decisions.items())
        }

    def likely(self, training: Training) -> list[Picks]:
        """What is evaluated after an epoch that others follow."""
        return sampled(self.draw, training, 1)

    def derived(self, training: Training) -> list[Picks]:
        """One network; after the last epoch as many as are to be scored."""
        if training.progress.epoch + 1 < self.options.epochs:
            return self.likely(training)
        return sampled(self.draw, training, self.options.samples)


class Controlled(Uniform):
    """ENAS: paths are sampled by an LSTM that is trained after every epoch."""

    options: ENAS  # type: ignore[assignment]

    def __init__(self, options: ENAS, gates: Gates, seed: int, containing: Containing) -> None:
        super().__init__(options, gates, seed, containing)
        self.controller = Controller(
            {name: len(found) for name, found in containing.decisions.items()},
            hidden=options.hidden,
            tanh_constant=options.tanh_constant,
            generator=torch.Generator().manual_seed(derive_seed(seed, "controller")),
        ).to(gates.alphas[0].device)
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=options.controller_lr)
        self.baseline: float | None = None

    @contextmanager
    def training_weights(self, training: Training) -> Iterator[Picks | None]:
        """One path, sampled by the controller."""
        picks = self.draw(training.generator(WEIGHTS))
        with self.gates.picked(self.containing.candidates(picks)):
            yield picks

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> Picks:
        """By the controller."""
        picks: Picks = self.controller(generator).picks
        return picks

    @torch.no_grad()
    def likely(self, training: Training) -> list[Picks]:
        """The likeliest network, where it is allowed; else one that is sampled."""
        picks = self.controller().picks
        return [picks] if training.allowed(picks) else super().likely(training)

    def close_epoch(self, training: Training) -> dict[str, float]:
        """Train the controller: the mean reward of the last step, and of the entropy."""
        options, generator = self.options, training.generator(REWARD)
        rewards: list[float] = []
        entropies: list[float] = []
        for _ in range(options.controller_steps):
            losses, rewards, entropies = [], [], []
            for _ in range(options.controller_samples):
                drawn = self.controller(generator)
                rewards.append(training.reward(drawn.picks))
                entropies.append(drawn.entropy.item())
                reward = rewards[-1] + options.entropy_weight * entropies[-1]
                if self.baseline is None:
                    self.baseline = reward
                decay = options.baseline_decay
                self.baseline = decay * self.baseline + (1 - decay) * reward
                losses.append(-drawn.log_probability * (reward - self.baseline))
            self.optimizer.zero_grad(set_to_none=True)
            torch.stack(losses).mean().backward()
            self.optimizer.step()
        count = len(rewards)
        return {"reward": sum(rewards) / count, "entropy": sum(entropies) / count}

    def state_dict(self) -> dict[str, Any]:
        """With the controller."""
        return {
            **super().state_dict(),
            "controller": self.controller.state_dict(),
            "moments": named_moments(self.optimizer, self.controller),
            "baseline": self.baseline,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From the checkpoint."""
        super().load_state_dict(state)
        self.controller.load_state_dict(dict(state["controller"]))
        load_moments(self.optimizer, self.controller, state["moments"])
        self.baseline = state["baseline"]


def sampled(
    draw: Callable[[torch.Generator], Picks], training: Training, count: int
) -> list[Picks]:
    """Sample `count` networks of a supernet that are allowed, no two of them the same function.

    They are fewer where there are no more. Raises `UserError` where none is found.
    """
    generator = training.generator(DERIVE)
    found: dict[str, Picks] = {}
    for _ in range(TRIES):
        picks = draw(generator)
        if training.allowed(picks):
            found.setdefault(training.key(picks), picks)
        if len(found) == count:
            break
    if not found:
        raise UserError(
            f"Of {TRIES:,} sampled networks none is within search.caps and "
            "strategy.max_skips: raise these."
        )
    return list(found.values())


# Of every option of `strategy` that trains a supernet; one from outside is added to it.
RULES: dict[type[OneShot], Callable[[Any, Gates, int, Containing], Rule]] = {
    Darts: Differentiable,
    PCDarts: Differentiable,
    Proxyless: TwoPaths,
    RandomSharing: Uniform,
    ENAS: Controlled,
}
