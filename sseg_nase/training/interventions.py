"""When the architecture changes: evolution on a plateau, pruning on a schedule."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from sseg_nase.config.groups.evolution import LATEST_EXPANSION, Planned
from sseg_nase.config.schema import (
    EvolutionConfig,
    PretrainConfig,
    SparsityConfig,
)
from sseg_nase.data.random import derive
from sseg_nase.evolution.history import accepted_kinds, removed_channels
from sseg_nase.evolution.plateau import PlateauDetector
from sseg_nase.evolution.selection import (
    SMALLEST_LOSS,
    advantage,
    candidates,
    paired,
    penalty,
    refusals,
)
from sseg_nase.finite import finite
from sseg_nase.nets.mutations.operator import Caps, Options
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.sparsity.importance import Importance, importance_of, makers, sensitivity
from sseg_nase.sparsity.masks import (
    channels_to_remove,
    complementary_masks,
    target_sparsity,
    undecided,
)
from sseg_nase.training.distributed import same_everywhere
from sseg_nase.training.state import Evolving, Pretraining
from sseg_nase.training.surgery import Decision, Intervention

SENSITIVITY_BATCHES = 2
SETTLING_SHARE = 0.2  # of all epochs
CONTROL = "control"  # how a probation compares
NO_IMPORTANCE = "the importance is not finite"


def importance(
    state: Evolving, *, kind: str, batches: int, seed: int, coupled: bool = True
) -> Importance:
    """`importance_of` the present student's channels on training losses, leaving it untouched.

    Not finite where no loss scale keeps the gradients within float16.
    """
    networks = copy.copy(state.networks)
    networks.learner = copy.deepcopy(state.networks.learner).train()
    backbone = networks.learner.backbone
    taken = state.probe.gradients(networks, state.progress.epoch, batches)
    gradients = ([_gradient(p) for p in makers(backbone)] for _ in taken)
    scores = importance_of(backbone, gradients, kind=kind, coupled=coupled, seed=seed)
    return same_everywhere(scores)


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def epochs_to_settle(evolution: EvolutionConfig, epochs: int) -> int:
    """Epochs that must be left of `epochs` for a mutation that grows the network.

    Its probation and the cooldown must end, and it must be trained at a learning rate that is worth
    it: under the cosine schedule less than a tenth is left of it in the last fifth of the epochs.
    """
    concluded = evolution.rollback_grace_epochs + evolution.cooldown_epochs
    return max(concluded, int(SETTLING_SHARE * epochs))


def growth_ends(evolution: EvolutionConfig, epochs: int) -> int:
    """How many of `epochs` are done when nothing grows any more; 0 where nothing ever does."""
    if not evolution.enabled:
        return 0
    if isinstance(evolution, Planned):
        return round(LATEST_EXPANSION * epochs) + 1
    return max(0, epochs - epochs_to_settle(evolution, epochs) + 1)


def _pretraining(state: Evolving) -> Pretraining:
    """Trials are for pretraining alone, as the configuration says."""
    assert isinstance(state, Pretraining)
    return state


def _all_finite(scores: Iterable[Tensor]) -> bool:
    return all(bool(each.isfinite().all()) for each in scores)


def _rounded(blocks: Iterable[Tensor]) -> list[list[float | None]]:
    """To four digits, for a record; what is not finite is not known."""
    return [[float(f"{x:.4g}") if finite(x) else None for x in one.tolist()] for one in blocks]


class Evolve(Intervention):
    """SSEG: on a plateau with a teacher gap, the fittest of GROW, WIDEN and no mutation.

    An operator that has no rule for such a network makes no candidate: the trigger says why.

    Should evolve = plateau ∧ gap > τ; without a teacher the plateau alone decides. The gap is
    `Probe.gap`, measured when all else allows a mutation. One is made if, beyond the error, it is
    fitter than the unmutated network after the same steps.
    """

    name = "evolution"

    def __init__(self, evolution: EvolutionConfig, seed: int) -> None:
        self.evolution, self.seed = evolution, seed
        self.detector = PlateauDetector(
            evolution.plateau_window_size,
            evolution.plateau_threshold,
            evolution.smoothing,
            detector=evolution.detector,
            patience=evolution.patience_epochs,
        )
        self.caps = Caps.of(evolution)
        self.options = Options(
            evolution.channel_expansion_ratio,
            evolution.grow_mode,
            evolution.widen_mode,
            evolution.widen_noise,
            evolution.grow_positions,
        )
        self.regime: list[Any] = []
        self.tried: int | None = None  # the epoch after which candidates were tried last

    def observe(self, state: Evolving) -> None:
        """Watch the loss; losses compare only within one level and one architecture."""
        means = _pretraining(state).means
        assert means is not None
        regime = [means.level, *means.channels]
        if regime != self.regime:
            self.detector.reset()
            self.regime = regime
        self.detector.update(means.loss)

    def decide(self, state: Evolving) -> Decision:
        """The fittest candidate, or the reason why there is none."""
        state = _pretraining(state)
        least = self.evolution.distillation_gap_threshold
        reason, gap = self._reason_not_to(state), None
        if reason is None:
            gap = state.probe.gap(state.networks)
            if gap is not None and not gap > least:
                reason = f"plateau, but the student–teacher gap of {gap:.4f} is not over {least:g}"
        trigger: dict[str, Any] = {
            "loss_change": self.detector.change,
            "plateau_threshold": self.evolution.plateau_threshold,
            "gap": gap,
            "gap_threshold": least,
        }
        if reason is not None:
            return Decision(None, {"reason": reason, **trigger})
        return self._fittest(state, trigger)

    def _reason_not_to(self, state: Evolving) -> str | None:
        evolution, epoch = self.evolution, state.progress.epoch
        left = state.epochs - epoch - 1
        # A mutation that was rolled back counts, too, and so do trials that led to none.
        ended = [record.epoch for record in state.progress.history]
        last = max(ended if self.tried is None else [*ended, self.tried], default=None)
        needed = epochs_to_settle(evolution, state.epochs)
        if left < needed:
            return (
                f"too few epochs left: {left}, and what is new takes {needed} to be trained and to "
                "end its probation"
            )
        if epoch + 1 < evolution.burn_in_epochs:
            return f"burn-in of {evolution.burn_in_epochs} epochs"
        if last is not None and epoch - last <= evolution.cooldown_epochs:
            what = "mutation" if last in ended else "trial"
            return f"cooldown of {evolution.cooldown_epochs} epochs after the last {what}"
        if not self.detector.plateau:
            return "no plateau"
        return None

    def _fittest(self, state: Pretraining, trigger: dict[str, Any]) -> Decision:
        evolution, epoch = self.evolution, state.progress.epoch
        seed = derive(self.seed, self.name, epoch)
        # Uncoupled: what comes along a shortcut would make every later block look sensitive.
        scores, _ = importance(
            state, kind="taylor", batches=SENSITIVITY_BATCHES, seed=seed, coupled=False
        )
        if not _all_finite(scores):
            return Decision(None, {"reason": NO_IMPORTANCE, **trigger})
        architecture = state.networks.architecture
        found = candidates(
            architecture,
            operators=evolution.operators,
            sensitivity=sensitivity(scores),
            options=self.options,
            caps=self.caps,
            seed=seed,
            recent=accepted_kinds(state.progress.history),
            max_repeats=evolution.max_repeats,
        )
        if refused := refusals(architecture, evolution.operators):
            trigger["no_rule"] = "; ".join(refused)
        if not found:
            return Decision(None, {"reason": "every candidate is over a hard cap", **trigger})
        self.tried = epoch
        before, stay, *mutants = state.probe.trials(
            state.networks,
            found,
            epoch=epoch,
            steps=evolution.trial_steps,
            lr=state.learning_rate,
            new_lr_ratio=evolution.trial_new_lr_ratio,
        )
        now = penalty(architecture, self.caps)
        scored, unfit = [], []
        for candidate, mutant in zip(found, mutants, strict=True):
            dearer = penalty(candidate.after, self.caps) - now
            lead = advantage(before, stay, mutant, dearer, evolution.fitness_alpha)
            if finite(lead.mean) and finite(lead.error):
                scored.append((lead, candidate))
            else:
                unfit.append(candidate.label)
        # Of every candidate: by how much it is fitter than the unmutated network; null is no
        # fitness, `not_finite` says why.
        compared: dict[str, float | None] = {one.label: lead.mean for lead, one in scored}
        errors = {one.label: lead.error for lead, one in scored}
        if unfit:
            trigger |= {"not_finite": f"the held loss in the trial of {', '.join(unfit)}"}
            compared |= dict.fromkeys(unfit)
        fall = paired(before, stay).mean / max(abs(before.mean().item()), SMALLEST_LOSS)
        trigger |= {"candidates": compared, "errors": errors}
        trigger |= {"stay": fall if finite(fall) else None}
        if not scored:
            return Decision(None, {**trigger, "reason": "no trial ended with a finite loss"})
        best, chosen = max(scored, key=lambda pair: pair[0].mean)
        margin = evolution.trial_margin
        if margin is not None and not best.mean > margin * best.error:
            reason = (
                f"the unmutated network stays: {chosen.label} is {best.mean:+.5f} ± "
                f"{best.error:.5f} fitter, and more than {margin:g} × the error is asked for"
            )
            return Decision(None, {**trigger, "reason": reason})
        reason = "plateau" if trigger["gap"] is None else "plateau and student–teacher gap"
        return Decision(
            chosen,
            {**trigger, "reason": reason},
            fitness=best.mean,
            tolerance=evolution.rollback_tolerance,
            grace=evolution.rollback_grace_epochs,
            control=evolution.probation == CONTROL,
        )

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "detector": self.detector.state_dict(),
            "regime": list(self.regime),
            "tried": self.tried,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.detector.load_state_dict(state["detector"])
        self.regime = list(state["regime"])
        self.tried = state.get("tried")  # an older version did not keep it


class Sparsify(Intervention):
    """NASE: every few epochs the least important channels go, on a cubic schedule to `ratio`.

    Unless `start_epoch` says when, it begins when growth has ended, and not before the middle of
    the run: channels that are still to be compared with more of them are not to go. What could not
    be done when it was due, because another mutation was on probation, is made up for at the next
    occasion.
    """

    name = "sparsity"

    def __init__(
        self,
        sparsity: SparsityConfig,
        evolution: EvolutionConfig,
        pretrain: PretrainConfig,
        seed: int,
    ) -> None:
        self.sparsity, self.seed = sparsity, seed
        last = pretrain.epochs - 1  # after the last epoch nothing is changed any more
        ended = max(growth_ends(evolution, pretrain.epochs), pretrain.epochs // 2)
        start = min(ended, last) if sparsity.start_epoch is None else sparsity.start_epoch
        self.due = list(range(max(start, 1), last + 1, sparsity.pruning_interval_epochs))
        self.rounds = 0  # of `due` that are over

    def observe(self, state: Evolving) -> None:
        """Nothing to watch: the schedule alone decides."""

    def decide(self, state: Evolving) -> Decision:
        """Prune when it is due, as far as the schedule and the minimum widths allow."""
        sparsity, epoch = self.sparsity, state.progress.epoch
        over = sum(due <= epoch + 1 for due in self.due)
        if over == self.rounds:
            return Decision(None, {"reason": "no pruning is due"})
        self.rounds = over
        removed = removed_channels(state.progress.history)
        width = sum(state.networks.architecture.axes.values())
        target = target_sparsity(sparsity.ratio, over / len(self.due))
        trigger: dict[str, Any] = {"target_sparsity": target, "channels": width}
        trigger["removed_before"] = removed
        found = importance(
            state,
            kind=sparsity.importance,
            batches=sparsity.importance_batches,
            seed=derive(self.seed, self.name, epoch),
        )
        if not _all_finite(found.scores):
            return Decision(None, {"reason": NO_IMPORTANCE, **trigger})
        masks = complementary_masks(
            found.scores,
            channels_to_remove(width, removed, target),
            min_channels=sparsity.min_channels,
            round_to=sparsity.round_to,
        )
        if not masks.removed:
            reason = "nothing to remove within the minimum widths"
            return Decision(None, {"reason": reason, **trigger})
        trigger |= {
            "importance": _rounded(found.scores),
            "importance_errors": _rounded(found.errors),
            "undecided": undecided(found, masks),
        }
        network = state.networks.architecture
        return Decision(
            prune(network, masks.kept),
            {"reason": "sparsity schedule", **trigger},
            negative=prune(network, masks.complement_kept) if sparsity.negative_path else None,
            tolerance=sparsity.rollback_tolerance,
            grace=sparsity.rollback_grace_epochs,
            control=sparsity.probation == CONTROL,
            recalibrate=sparsity.recalibration_batches,
        )

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"rounds": self.rounds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.rounds = state["rounds"]
