"""Carrying a training state across a mutation: pure functions over named tensors."""

from __future__ import annotations

import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sseg_nase.evolution.history import MutationRecord, counts
from sseg_nase.nets.building import build
from sseg_nase.nets.description import Description
from sseg_nase.nets.evolvable import Learner, head_shaped
from sseg_nase.nets.maps import (
    GRADIENT,
    NEW,
    SQUARED_GRADIENT,
    Tensors,
    carry,
    settled,
    wires_of_heads,
)
from sseg_nase.nets.mutation import Mutation, fresh_state

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
    mutation: Mutation, state: TrainingState, *, head: nn.Module | None = None
) -> TrainingState:
    """Return `state` after `mutation`; the given state is left as it was.

    `head`: a new one for `mutation.after`, where it is no `Learner`'s; its weights are what new
    entries start from.

    Optimizer state is kept for entries that survive, and moved with them; the step count stays. New
    entries have a first moment of 0 and, as second one, the mean of the entries beside them that
    survive (`maps.settled`). Parameters of a new block have no state yet. Raises `KeyError` when a
    tensor of the state is not one that the mutation knows.
    """
    parts = _fresh_parts(mutation, state.student) if head is None else {"head": head}
    maps = mutation.learner_maps(wires_of_heads(parts, mutation.after.embedding_axis))
    backbone = _named({"backbone": fresh_state(mutation)})
    fresh_head = _named({"head": parts["head"].state_dict()})
    fresh = backbone | _named({name: part.state_dict() for name, part in parts.items()})
    bundle = {"student": Tensors(state.student, fresh)}
    teacher = _teacher(state)
    if teacher:
        theirs = backbone if state.teacher_head is None else backbone | fresh_head
        bundle["teacher"] = Tensors(teacher, theirs)
    sources = {name: maps[name].source for name in fresh}
    known = {each.source for each in maps.values()}
    bundle |= _moments(state.moments, fresh, sources, known)
    carried = carry(maps, bundle)
    moments: dict[str, dict[str, Any]] = {
        name: {k: v if k in MOMENTS else _copied(v) for k, v in state.moments[source].items()}
        for name, source in sources.items()
        if source is not None and source in state.moments
    }
    for key, like in MOMENTS.items():
        for name, moment in carried.get(_of_optimizer(key), {}).items():
            squared = like == SQUARED_GRADIENT
            moments[name][key] = settled(moment, maps[name]) if squared else moment
    followed = carried.get("teacher", {})
    return TrainingState(
        carried["student"],
        None if state.teacher is None else _part("backbone", followed),
        moments,
        None if state.teacher_head is None else _part("head", followed),
        dict(state.memory),
    )


def _teacher(state: TrainingState) -> dict[str, Tensor]:
    """The teacher's tensors under the names that the student's have."""
    parts = {"backbone": state.teacher, "head": state.teacher_head}
    return _named({name: tensors for name, tensors in parts.items() if tensors is not None})


def _moments(
    moments: Mapping[str, Mapping[str, Any]],
    fresh: Mapping[str, Tensor],
    sources: Mapping[str, str | None],
    known: Set[str | None],
) -> dict[str, Tensors]:
    """The optimizer's state that moves with its weights, one part per key.

    `known`: the tensors that the mutation knows, with those that it takes nowhere.
    """
    keys = dict.fromkeys(key for each in moments.values() for key in each)
    unknown = [key for key in keys if key != "step" and key not in MOMENTS and _moves(moments, key)]
    if unknown:
        raise KeyError(
            f"optimizer state '{unknown[0]}' has no rule; known: step, {', '.join(MOMENTS)}"
        )
    strangers = sorted(name for name in moments if name not in known)
    if strangers:
        raise KeyError(f"the mutation does not know the optimizer state's {', '.join(strangers)}")
    bundle = {}
    for key, like in MOMENTS.items():
        old = {name: each[key] for name, each in moments.items() if each.get(key) is not None}
        zeros = {
            name: torch.zeros(fresh[name].shape, dtype=old[source].dtype)
            for name, source in sources.items()
            if source is not None and source in old
        }
        if old:
            bundle[_of_optimizer(key)] = Tensors(old, zeros, like)
    return bundle


def _moves(moments: Mapping[str, Mapping[str, Any]], key: str) -> bool:
    return any(each.get(key) is not None for each in moments.values())


def _of_optimizer(key: str) -> str:
    return f"optimizer state {key}"


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


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


def _part(part: str, tensors: Mapping[str, Named]) -> dict[str, Named]:
    """Those of a learner's tensors that belong to `part`, under their names in it."""
    prefix = f"{part}."
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _fresh_parts(mutation: Mutation, student: Mapping[str, Tensor]) -> dict[str, nn.Module]:
    """What stands on the backbone, newly initialised for `mutation.after`."""
    generator = torch.Generator().manual_seed((mutation.seed + 1) % 2**63)
    features = mutation.after.features
    return {
        "head": head_shaped(_part("head", student), features, generator),
        "predictor": head_shaped(_part("predictor", student)),
    }


def _named(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}


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
    learner = Learner(backbone, head, head_shaped(_part("predictor", state.student)))
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
