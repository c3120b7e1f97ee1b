"""Student, teacher and optimizer: what a mutation replaces together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sseg_nase.config.schema import Config
from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    build_learner,
    learner_of,
    load_moments,
    named_moments,
)
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN, Learner
from sseg_nase.nets.mutation import Mutation
from sseg_nase.ssl.teacher import make_teacher
from sseg_nase.training.optim import build_optimizer


@dataclass
class Networks:
    """Student (with its projection head), teacher if there is one, and the optimizer."""

    learner: Learner
    teacher: EvolvableCNN | None
    optimizer: torch.optim.Optimizer

    @property
    def architecture(self) -> Architecture:
        """Of the student, and so of the teacher."""
        return self.learner.backbone.architecture

    def compile(self) -> None:
        """Let torch compile what is trained, at its next call; copies of it are not compiled.

        Worth its time (half a minute and more) only for networks that last, so it is not done at
        once after a mutation.
        """
        for network in (self.learner.backbone, self.teacher):
            if network is not None and network._compiled_call_impl is None:
                network.compile(dynamic=False)

    def state(self) -> TrainingState:
        """All of it as named tensors."""
        teacher = None if self.teacher is None else self.teacher.state_dict()
        moments = named_moments(self.optimizer, self.learner)
        return TrainingState(self.learner.state_dict(), teacher, moments)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: tensors and plain data."""
        state = self.state()
        return {
            "architecture": self.architecture.to_dict(),
            "student": dict(state.student),
            "teacher": None if state.teacher is None else dict(state.teacher),
            "moments": {name: dict(moments) for name, moments in state.moments.items()},
        }


class Workshop:
    """Makes `Networks` as a config asks for: device, memory format, teacher, optimizer."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.device = config, device

    @property
    def memory_format(self) -> torch.memory_format:
        """Of weights and images."""
        channels_last = self.config.hardware.channels_last
        return torch.channels_last if channels_last else torch.contiguous_format

    def around(self, learner: Learner) -> Networks:
        """A teacher equal to the student, and an optimizer without moments."""
        learner.backbone.gradient_checkpointing = self.config.hardware.gradient_checkpointing
        learner.to(self.device).to(memory_format=self.memory_format)
        distills = self.config.ssl.distillation_weight > 0
        teacher = make_teacher(learner.backbone) if distills else None
        return Networks(learner, teacher, build_optimizer(learner, self.config.optimizer))

    def mutated(self, networks: Networks, mutation: Mutation) -> Networks:
        """New networks and optimizer after `mutation`; the given ones are left as they are."""
        state = apply(mutation, networks.state())
        return self._filled(build_learner(mutation, state, like=networks.learner), state)

    def restored(self, saved: Mapping[str, Any]) -> Networks:
        """What `Networks.state_dict` saved."""
        state = TrainingState(saved["student"], saved["teacher"], saved["moments"])
        learner = learner_of(Architecture.from_dict(saved["architecture"]), state)
        return self._filled(learner.train(), state)

    def _filled(self, learner: Learner, state: TrainingState) -> Networks:
        networks = self.around(learner)
        assert (networks.teacher is None) == (state.teacher is None)
        if networks.teacher is not None and state.teacher is not None:
            networks.teacher.load_state_dict(dict(state.teacher))
        load_moments(networks.optimizer, learner, state.moments)
        return networks
