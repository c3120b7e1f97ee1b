"""Carrying a training state across a mutation: pure functions over named tensors."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sseg_nase.evolution.history import MutationRecord, counts
from sseg_nase.nets.building import build
from sseg_nase.nets.description import Description
from sseg_nase.nets.evolvable import Learner, fresh_state, head_shaped
from sseg_nase.nets.mutation import (
    GRADIENT,
    NEW,
    SQUARED_GRADIENT,
    ChannelMap,
    Mutation,
    TensorMap,
    carry,
)

Named = TypeVar("Named")

MOMENTS = {
    "exp_avg": GRADIENT,
    "momentum_buffer": GRADIENT,
    "exp_avg_sq": SQUARED_GRADIENT,
    "max_exp_avg_sq": SQUARED_GRADIENT,
}


@dataclass(frozen=True)
class TrainingState:
    """What a mutation changes. Every dictionary is keyed by tensor name.

    `student`: state dict of a `Learner`. `teacher`: state dict of its backbone's teacher, if there
    is one. `moments`: optimizer state per parameter name of the learner. `teacher_head`: state dict
    of the teacher's head, where the teacher is a method's target and has one. `memory`: what a
    method keeps beside its networks, which no mutation changes.
    """

    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor] | None = None
    moments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    teacher_head: Mapping[str, Tensor] | None = None
    memory: Mapping[str, Tensor] = field(default_factory=dict)


def apply(
    mutation: Mutation,
    state: TrainingState,
    *,
    head: Mapping[str, Tensor] | None = None,
    follows: Mapping[str, ChannelMap] | None = None,
) -> TrainingState:
    """Return `state` after `mutation`; the given state is left as it was.

    With a head that is no `Learner`'s, `head` is a new one's state dict, for `mutation.after`, and
    `follows` is as in `Mutation.learner_maps`.

    Optimizer state is kept for entries that survive, and moved with them; the step count stays. New
    entries have a first moment of 0 and, as second one, the mean of the entries beside them that
    survive: at 0 it would lack the correction of Adam's first steps, which the old count takes for
    done, and those steps were 3 to 6 times too long. Parameters of a new block have no state yet.
    Raises `KeyError` when a tensor of the state is not one that the mutation knows.
    """
    if head is None:
        fresh = _fresh_learner(mutation, state.student)
    else:
        fresh = _named({"backbone": fresh_state(mutation), "head": head})
    maps = mutation.learner_maps(list(fresh), follows)
    _check_known(maps, state.student, "the student's")
    _check_known(maps, state.moments, "the optimizer state's")
    _check_known(mutation.maps, state.teacher or {}, "the teacher's")
    student = carry(maps, state.student, fresh)
    teacher = None
    if state.teacher is not None:
        teacher = carry(mutation.maps, state.teacher, fresh_state(mutation))
    teacher_head = None
    if state.teacher_head is not None:
        old = {f"head.{name}": tensor for name, tensor in state.teacher_head.items()}
        _check_known(maps, old, "the teacher's")
        fresh_head = {name: tensor for name, tensor in fresh.items() if name.startswith("head.")}
        teacher_head = _part("head", carry(maps, old, fresh_head))
    moments = {}
    for name in fresh:
        source = maps[name].source
        if source is not None and source in state.moments:
            moments[name] = {
                key: _carry_moment(key, value, maps[name], fresh[name])
                for key, value in state.moments[source].items()
            }
    return TrainingState(student, teacher, moments, teacher_head, dict(state.memory))


def perform(
    mutation: Mutation, state: TrainingState, *, probe: Tensor | None = None
) -> tuple[TrainingState, MutationRecord]:
    """`apply`, and the record of it: for use by hand, without a training loop.

    `probe` `[B, 3, S, S]`: normalised images on which `function_delta` is taken; without them it
    stays None. Losses are None, too, and the record says accepted; number it with
    `dataclasses.replace(record, index=...)`. Raises what `apply` raises.
    """
    began = time.perf_counter()
    after = apply(mutation, state)
    delta = None if probe is None else _function_delta(mutation, state, after, probe)
    record = MutationRecord(
        index=0,
        epoch=0,
        step=0,
        kind=mutation.kind,
        target=mutation.target,
        trigger={"reason": "performed by hand"},
        before=counts(mutation.before),
        after=counts(mutation.after),
        function_delta=delta,
        loss_before=None,
        loss_after=None,
        fitness=None,
        seconds=time.perf_counter() - began,
        accepted=True,
    )
    return after, record


@torch.no_grad()
def _function_delta(
    mutation: Mutation, before: TrainingState, after: TrainingState, probe: Tensor
) -> float:
    """`output_change` in eval mode, in float64."""
    f, f_new = (
        learner_of(architecture, state).to(device=probe.device).double().eval()(probe.double())[1]
        for architecture, state in ((mutation.before, before), (mutation.after, after))
    )
    return output_change(mutation, f, f_new, embeddings=not _part("head", before.student))


def output_change(mutation: Mutation, f: Tensor, f_new: Tensor, *, embeddings: bool) -> float:
    """‖f' − f‖ / ‖f‖ of what a learner puts out before and after `mutation`, `[B, D]` each.

    `embeddings`: there is no head, so that f and f' may differ in length. Every entry is then
    compared with the one it comes from, a new one with 0.
    """
    if embeddings:
        index = torch.tensor(mutation.features.index, device=f.device)
        f = torch.where(index == NEW, torch.zeros_like(f[:, :1]), f[:, index.clamp_min(0)])
    return ((f_new - f).norm() / f.norm().clamp_min(1e-12)).item()


def _check_known(maps: Mapping[str, TensorMap], names: Iterable[str], whose: str) -> None:
    unknown = sorted(set(names) - {m.source for m in maps.values()})
    if unknown:
        raise KeyError(f"the mutation does not know {whose} {', '.join(unknown)}")


def _carry_moment(key: str, value: Any, tensor_map: TensorMap, fresh: Tensor) -> Any:
    if key == "step" or value is None:
        return value.clone() if isinstance(value, Tensor) else value
    if key not in MOMENTS:
        raise KeyError(f"optimizer state '{key}' has no rule; known: step, {', '.join(MOMENTS)}")
    assert tensor_map.source is not None
    zeros = {"": torch.zeros(fresh.shape, dtype=value.dtype)}

    def carried(moment: Tensor) -> Tensor:
        assert tensor_map.source is not None
        return carry({"": tensor_map}, {tensor_map.source: moment}, zeros, like=MOMENTS[key])[""]

    moment = carried(value)
    if MOMENTS[key] != SQUARED_GRADIENT:
        return moment
    new = carried(torch.ones_like(value)) == 0
    if not new.any() or new.all():
        return moment
    return moment.masked_fill(new, moment[~new].double().mean().item())


def _part(part: str, tensors: Mapping[str, Named]) -> dict[str, Named]:
    """Those of a learner's tensors that belong to `part`, under their names in it."""
    prefix = f"{part}."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _fresh_learner(mutation: Mutation, student: Mapping[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed((mutation.seed + 1) % 2**63)
    parts = {
        "backbone": fresh_state(mutation),
        "head": head_shaped(
            _part("head", student), mutation.after.features, generator
        ).state_dict(),
        "predictor": _predictor_of(student).state_dict(),
    }
    return _named(parts)


def _named(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}


def _predictor_of(student: Mapping[str, Tensor]) -> nn.Module:
    """A new predictor of the student's shape: its input does not depend on the backbone."""
    tensors = _part("predictor", student)
    return head_shaped(tensors, tensors["fc1.weight"].shape[1] if tensors else 0)


def build_learner(mutation: Mutation, state: TrainingState, *, like: nn.Module) -> Learner:
    """A `Learner` of `mutation.after` with `state.student`; device and mode are those of `like`."""
    parameter = next(like.parameters())
    learner = learner_of(mutation.after, state)
    return learner.to(device=parameter.device, dtype=parameter.dtype).train(like.training)


def learner_of(architecture: Description, state: TrainingState) -> Learner:
    """A `Learner` with a copy of `state.student`, of its type, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        backbone = build(architecture)
    head = head_shaped(_part("head", state.student), architecture.features)
    learner = Learner(backbone, head, _predictor_of(state.student))
    learner.to(dtype=next(iter(state.student.values())).dtype)
    learner.load_state_dict(dict(state.student))
    return learner


def named_moments(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, dict[str, Any]]:
    """The optimizer's state by parameter name. Raises when it holds a parameter not in `module`."""
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters()}
    strangers = [p for p in optimizer.state if p not in names]
    if strangers:
        raise KeyError(f"the optimizer holds {len(strangers)} parameters the network does not have")
    return {names[parameter]: dict(state) for parameter, state in optimizer.state.items()}


def load_moments(
    optimizer: torch.optim.Optimizer, module: nn.Module, moments: Mapping[str, Mapping[str, Any]]
) -> None:
    """Put a copy of `moments` (by parameter name) into a new optimizer over `module`.

    In memory they are laid out as their parameter is: a fused step takes both entry by entry.
    """
    parameters = dict(module.named_parameters())
    unmatched = sorted(set(moments) - set(parameters))
    if unmatched:
        raise KeyError(f"optimizer state without a parameter: {', '.join(unmatched)}")
    for name, state in moments.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            key: _laid_out_as(parameter, value) if isinstance(value, Tensor) else value
            for key, value in state.items()
        }


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of `value`: of a moment, on the parameter's device and in its memory format."""
    if value.shape != parameter.shape:
        return value.to(parameter.device, copy=True)
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
