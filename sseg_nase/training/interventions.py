"""When the architecture changes: evolution on a plateau, pruning on a schedule."""

from __future__ import annotations

import copy
from typing import Any

from sseg_nase.config.schema import EvolutionConfig, PretrainConfig, SparsityConfig
from sseg_nase.data.random import derive
from sseg_nase.evolution.history import MutationRecord, accepted_kinds
from sseg_nase.evolution.plateau import PlateauDetector
from sseg_nase.evolution.selection import Caps, Options, candidates, fitness
from sseg_nase.nets.mutation import prune
from sseg_nase.sparsity.importance import channel_importance, sensitivity
from sseg_nase.sparsity.masks import channels_to_remove, complementary_masks, target_sparsity
from sseg_nase.training.loop import Decision, EpochMeans, Intervention, Trainer

SENSITIVITY_BATCHES = 2


def importance(trainer: Trainer, *, kind: str, batches: int, seed: int) -> list[Any]:
    """Channel importance of the present student on training losses, leaving it untouched."""
    networks = copy.copy(trainer.networks)
    networks.learner = copy.deepcopy(trainer.networks.learner).train()
    losses = (batch.total for batch in trainer.trial_losses(networks, batches))
    return channel_importance(networks.learner.backbone, losses, kind=kind, seed=seed)


class Evolve(Intervention):
    """SSEG: on a plateau with a teacher gap, the fittest of GROW and WIDEN.

    Should evolve = plateau ∧ gap > τ; without a teacher the plateau alone decides.
    """

    name = "evolution"

    def __init__(self, evolution: EvolutionConfig, seed: int) -> None:
        self.evolution, self.seed = evolution, seed
        self.detector = PlateauDetector(
            evolution.plateau_window_size, evolution.plateau_threshold, evolution.smoothing
        )
        self.caps = Caps(
            evolution.max_blocks,
            evolution.max_channels,
            evolution.max_params,
            evolution.max_flops,
            evolution.cap_resolution,
        )
        self.options = Options(
            evolution.channel_expansion_ratio,
            evolution.grow_mode,
            evolution.widen_mode,
            evolution.widen_noise,
        )
        self.regime: list[Any] = []
        self.last_mutation: int | None = None

    def decide(self, trainer: Trainer) -> Decision:
        """The fittest candidate, or the reason why there is none."""
        assert trainer.means is not None
        self._watch(trainer, trainer.means)
        epoch, gap = trainer.progress.epoch, trainer.means.gap
        trigger: dict[str, Any] = {
            "loss_change": self.detector.change,
            "plateau_threshold": self.evolution.plateau_threshold,
            "gap": gap,
            "gap_threshold": self.evolution.distillation_gap_threshold,
        }
        reason = self._reason_not_to(epoch, trainer.config.pretrain.epochs - epoch - 1, gap)
        if reason is not None:
            return Decision(None, {"reason": reason, **trigger})
        return self._fittest(trainer, trigger)

    def _watch(self, trainer: Trainer, means: EpochMeans) -> None:
        """Losses compare only within one level and one architecture."""
        epoch = trainer.progress.epoch
        changes = sum(r.accepted and r.epoch < epoch for r in trainer.progress.history)
        regime = [means.level, changes]
        if regime != self.regime:
            self.detector.reset()
            self.regime = regime
        self.detector.update(means.loss)

    def _reason_not_to(self, epoch: int, epochs_left: int, gap: float | None) -> str | None:
        evolution = self.evolution
        if epochs_left < evolution.cooldown_epochs:
            return f"only {epochs_left} epochs left to train what would be new"
        if epoch + 1 < evolution.burn_in_epochs:
            return f"burn-in of {evolution.burn_in_epochs} epochs"
        if (
            self.last_mutation is not None
            and epoch - self.last_mutation <= evolution.cooldown_epochs
        ):
            return f"cooldown of {evolution.cooldown_epochs} epochs after the last mutation"
        if not self.detector.plateau:
            return "no plateau"
        if gap is not None and gap <= evolution.distillation_gap_threshold:
            return "plateau, but the student–teacher gap is small"
        return None

    def _fittest(self, trainer: Trainer, trigger: dict[str, Any]) -> Decision:
        seed = derive(self.seed, self.name, trainer.progress.epoch)
        scores = importance(trainer, kind="taylor", batches=SENSITIVITY_BATCHES, seed=seed)
        found = candidates(
            trainer.networks.architecture,
            operators=self.evolution.operators,
            sensitivity=sensitivity(scores),
            options=self.options,
            caps=self.caps,
            seed=seed,
            recent=accepted_kinds(trainer.progress.history),
            max_repeats=self.evolution.max_repeats,
        )
        if not found:
            return Decision(None, {"reason": "every candidate is over a hard cap", **trigger})
        judged = [
            (
                fitness(
                    trainer.trial(candidate, self.evolution.trial_steps),
                    candidate.after,
                    self.caps,
                    self.evolution.fitness_alpha,
                ),
                candidate,
            )
            for candidate in found
        ]
        best, chosen = max(judged, key=lambda pair: pair[0])
        compared = {candidate.kind: score for score, candidate in judged}
        reason = "plateau" if trigger["gap"] is None else "plateau and student–teacher gap"
        return Decision(
            chosen,
            {"reason": reason, **trigger, "candidates": compared},
            fitness=best,
            tolerance=self.evolution.rollback_tolerance,
        )

    def settled(self, record: MutationRecord) -> None:
        """Cooldown counts from every mutation, also from one that was rolled back."""
        self.last_mutation = record.epoch

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {
            "detector": self.detector.state_dict(),
            "regime": list(self.regime),
            "last_mutation": self.last_mutation,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.detector.load_state_dict(state["detector"])
        self.regime = list(state["regime"])
        self.last_mutation = state["last_mutation"]


class Sparsify(Intervention):
    """NASE: every few epochs the least important channels go, on a cubic schedule to `ratio`."""

    name = "sparsity"

    def __init__(self, sparsity: SparsityConfig, pretrain: PretrainConfig, seed: int) -> None:
        self.sparsity, self.seed = sparsity, seed
        last = pretrain.epochs - 1  # after the last epoch nothing is changed any more
        start = pretrain.epochs // 2 if sparsity.start_epoch is None else sparsity.start_epoch
        self.due = list(range(max(start, 1), last + 1, sparsity.pruning_interval_epochs))
        self.removed = 0

    def decide(self, trainer: Trainer) -> Decision:
        """Prune when it is due, as far as the schedule and the minimum widths allow."""
        done = trainer.progress.epoch + 1
        if done not in self.due:
            return Decision(None, {"reason": "no pruning is due"})
        width = sum(trainer.networks.architecture.channels)
        target = target_sparsity(self.sparsity.ratio, (self.due.index(done) + 1) / len(self.due))
        remove = channels_to_remove(width, self.removed, target)
        trigger = {"target_sparsity": target, "channels": width, "removed_before": self.removed}
        seed = derive(self.seed, self.name, trainer.progress.epoch)
        scores = importance(
            trainer,
            kind=self.sparsity.importance,
            batches=self.sparsity.importance_batches,
            seed=seed,
        )
        masks = complementary_masks(
            scores,
            remove,
            min_channels=self.sparsity.min_channels,
            round_to=self.sparsity.round_to,
        )
        if not masks.removed:
            reason = "nothing to remove within the minimum widths"
            return Decision(None, {"reason": reason, **trigger})
        return Decision(
            prune(trainer.networks.architecture, masks.kept),
            {"reason": "sparsity schedule", **trigger},
            tolerance=self.sparsity.rollback_tolerance,
        )

    def settled(self, record: MutationRecord) -> None:
        """Count the channels that are gone."""
        if record.kind == "PRUNE" and record.accepted:
            self.removed += sum(len(channels) for channels in record.target["removed"].values())

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"removed": self.removed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From the checkpoint."""
        self.removed = state["removed"]
