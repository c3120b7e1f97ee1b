"""Student, teacher and optimizer: what a mutation replaces together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sseg_nase.config.schema import Config
from sseg_nase.evolution.operators import (
    TrainingState,
    apply,
    build_learner,
    learner_of,
    load_moments,
    named_moments,
)
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import described
from sseg_nase.nets.description import Description
from sseg_nase.nets.evolvable import Learner, PrototypeHead
from sseg_nase.nets.mutation import Mutation
from sseg_nase.ssl.methods import Teaching, method_of
from sseg_nase.ssl.teacher import ema_update, make_teacher
from sseg_nase.training.distributed import ranks, synchronize_batch_norm
from sseg_nase.training.optim import build_optimizer


@dataclass
class Networks:
    """Student (with the heads on its backbone), teacher if there is one, and the optimizer.

    `teacher_head`: where the teacher is the method's target. `memory`: what the method keeps beside
    its networks. `own_statistics`: of the teacher; see ssl.teacher_statistics. `held_epochs`: at
    the start, in which DINO's last layer is not trained. `guide`: the network of another run, which
    nothing here changes; see ssl.teacher.
    """

    learner: Learner
    teacher: Backbone | None
    optimizer: torch.optim.Optimizer
    teacher_head: nn.Module | None
    memory: Mapping[str, Tensor]
    own_statistics: bool = True
    held_epochs: int = 0
    guide: Backbone | None = None

    @property
    def architecture(self) -> Description:
        """Of the student, and so of the teacher."""
        return self.learner.backbone.architecture

    def teaching(self, epoch: int, *, tracks: bool = False) -> Teaching:
        """What the loss of `epoch` is given beside the student; `tracks` in a step of training."""
        own, guide = self.own_statistics, self.guide
        return Teaching(self.teacher, self.teacher_head, self.memory, epoch, tracks, own, guide)

    def hold(self, epoch: int) -> None:
        """Take the gradient away from what is not trained in `epoch`, before a step."""
        if epoch < self.held_epochs and isinstance(self.learner.head, PrototypeHead):
            for parameter in self.learner.head.prototypes.parameters():
                parameter.grad = None

    def follow(self, decay: float) -> None:
        """Move the teacher towards the student."""
        if self.teacher is not None:
            ema_update(
                self.teacher, self.learner.backbone, decay, own_statistics=self.own_statistics
            )
        if self.teacher_head is not None:
            ema_update(self.teacher_head, self.learner.head, decay)

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
        head = None if self.teacher_head is None else self.teacher_head.state_dict()
        moments = named_moments(self.optimizer, self.learner)
        return TrainingState(self.learner.state_dict(), teacher, moments, head, self.memory)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: tensors and plain data."""
        state = self.state()
        return {
            "architecture": self.architecture.to_dict(),
            "student": dict(state.student),
            "teacher": None if state.teacher is None else dict(state.teacher),
            "teacher_head": None if state.teacher_head is None else dict(state.teacher_head),
            "memory": dict(state.memory),
            "moments": {name: dict(moments) for name, moments in state.moments.items()},
        }


class Workshop:
    """Makes `Networks` as a config asks for: device, memory format, teacher, optimizer, guide."""

    def __init__(self, config: Config, device: torch.device, guide: Backbone | None = None) -> None:
        self.config, self.device = config, device
        self.guide = None
        if guide is not None:
            self.guide = guide.for_inference().requires_grad_(False).to(device)

    @property
    def memory_format(self) -> torch.memory_format:
        """Of weights and images."""
        channels_last = self.config.hardware.channels_last
        return torch.channels_last if channels_last else torch.contiguous_format

    def around(self, learner: Learner) -> Networks:
        """A teacher equal to the student, and an optimizer without moments."""
        learner.backbone.gradient_checkpointing = self.config.hardware.gradient_checkpointing
        learner.to(self.device).to(memory_format=self.memory_format)
        if ranks() > 1:
            synchronize_batch_norm(learner)
        ssl = self.config.ssl
        method = method_of(ssl)
        taught = method.has_target or ssl.distillation_weight > 0
        return Networks(
            learner,
            make_teacher(learner.backbone) if taught else None,
            build_optimizer(learner, self.config.optimizer),
            make_teacher(learner.head) if method.has_target else None,
            {name: tensor.to(self.device) for name, tensor in method.memory(ssl).items()},
            own_statistics=ssl.own_statistics,
            held_epochs=ssl.held_epochs,
            guide=self.guide,
        )

    def mutated(self, networks: Networks, mutation: Mutation) -> Networks:
        """New networks and optimizer after `mutation`; the given ones are left as they are."""
        state = apply(mutation, networks.state())
        return self._filled(build_learner(mutation, state, like=networks.learner), state)

    def restored(self, saved: Mapping[str, Any]) -> Networks:
        """What `Networks.state_dict` saved."""
        state = TrainingState(
            saved["student"],
            saved["teacher"],
            saved["moments"],
            saved.get("teacher_head"),  # an older file has none of SimCLR's
            saved.get("memory", {}),
        )
        learner = learner_of(described(saved["architecture"]), state)
        return self._filled(learner.train(), state)

    def _filled(self, learner: Learner, state: TrainingState) -> Networks:
        networks = self.around(learner)
        for network, tensors in (
            (networks.teacher, state.teacher),
            (networks.teacher_head, state.teacher_head),
        ):
            assert (network is None) == (tensors is None)
            if network is not None and tensors is not None:
                network.load_state_dict(dict(tensors))
        assert networks.memory.keys() == state.memory.keys()
        networks.memory = {name: t.to(self.device) for name, t in state.memory.items()}
        load_moments(networks.optimizer, learner, state.moments)
        return networks
