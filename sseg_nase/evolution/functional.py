"""GROW, WIDEN and PRUNE of a network at hand: in a notebook, without a training loop.

Nothing that is given is changed. What is trained goes along: the optimizer's moments move with
their weights, and a teacher is mutated as its student is. A network with a head on it is mutated
by `operators.perform`, which these stand on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from sseg_nase.errors import UserError
from sseg_nase.evolution.history import MutationRecord
from sseg_nase.evolution.operators import (
    TrainingState,
    build_learner,
    load_moments,
    named_moments,
    perform,
)
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build
from sseg_nase.nets.evolvable import Learner
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations import grow as growing
from sseg_nase.nets.mutations import prune as pruning
from sseg_nase.nets.mutations import widen as widening


class Evolved(NamedTuple):
    """What `grow`, `widen` and `prune` return: the new network, and what was carried along.

    `network`: the mutated one, on the device and in the mode of the given one. `record`: what
    mutations.jsonl holds of a mutation; a list of records is what `replay` takes. `optimizer` and
    `teacher`: those that were given, for the mutated network; None where none was given.
    """

    network: Backbone
    record: MutationRecord
    optimizer: Optimizer | None
    teacher: Backbone | None


def grow(
    network: Backbone,
    out_channels: int | None = None,
    *,
    position: int | None = None,
    before_pool: bool = False,
    mode: str = "preserve",
    seed: int = 0,
    optimizer: Optimizer | None = None,
    teacher: Backbone | None = None,
    images: Tensor | None = None,
) -> Evolved:
    """GROW: one block more, with `out_channels` (default: as many as come in).

    The block stands at `position`, counted from 0 (default: after the last). With `before_pool` it
    takes the pooling over from the block before it, and works on the larger map. mode `preserve`:
    it is residual, and what the network computes stays as it was, in train and eval mode; channels
    that it has more than come in start at 0. mode `fresh`: a plain block, newly initialised. `seed`
    draws what is new. `optimizer` (over this network's parameters alone) and `teacher` (of the same
    architecture) go along. With `images` `[B, C, S, S]`, normalised as for training, the record
    tells how much the embeddings changed: ‖f' − f‖ / ‖f‖. Raises `UserError` for what cannot be.
    """
    mutation = growing.grow(
        network.architecture,
        out_channels=out_channels,
        position=position,
        before_pool=before_pool,
        mode=mode,
        seed=seed,
    )
    return _evolved(mutation, network, optimizer, teacher, images)


def grow_stages(
    network: Backbone,
    *,
    most: int | None = None,
    seed: int = 0,
    optimizer: Optimizer | None = None,
    teacher: Backbone | None = None,
    images: Tensor | None = None,
) -> Evolved:
    """GROW in every stage at once: a residual block at the end of each, before its pooling.

    A stage is the blocks that compute on maps of one size; one that has `most` blocks stays as it
    is. The function stays as it was. The rest is as in `grow`.
    """
    mutation = growing.grow_stages(network.architecture, most=most, seed=seed)
    return _evolved(mutation, network, optimizer, teacher, images)


def widen(
    network: Backbone,
    block: int | str | None,
    *,
    ratio: float = 1.5,
    channels: int | Sequence[int] | None = None,
    mode: str = "duplicate",
    noise: float = 0.0,
    seed: int = 0,
    optimizer: Optimizer | None = None,
    teacher: Backbone | None = None,
    images: Tensor | None = None,
) -> Evolved:
    """WIDEN: more channels for `block`, counted from 0, or, with None, for all of them.

    Of a network that is no chain of blocks, `block` is one of its named axes
    (`network.architecture.axes`), by number or name.
    `channels`: how many it has then (for all blocks: a list), instead of `ratio` times what it has.
    mode `duplicate`: new channels repeat old ones, with `noise` relative noise on the copies, and
    what follows divides by the number of copies; mode `zero`: they are newly initialised, and what
    follows gives them weight 0; mode `pairs`: they start alike in twos, and what follows weighs
    them with Z and −Z (Yuan et al. 2023). Without noise the function stays as it was; widening the
    last block gives more features. The rest is as in `grow` (Chen et al. 2016, Net2Net).
    """
    mutation = widening.widen(
        network.architecture,
        block,
        ratio=ratio,
        channels=channels,
        mode=mode,
        noise=noise,
        seed=seed,
    )
    return _evolved(mutation, network, optimizer, teacher, images)


def prune(
    network: Backbone,
    kept: Sequence[Sequence[int]],
    *,
    optimizer: Optimizer | None = None,
    teacher: Backbone | None = None,
    images: Tensor | None = None,
) -> Evolved:
    """PRUNE: keep the channels `kept[b]` of every block b, as `ComplementaryMasks.kept` lists them.

    Of a network that is no chain of blocks: of every named axis. The result computes what
    `network.masked(x, masks.positive)` does; its embedding lacks the
    features of channels that the last block has lost. BN's statistics are those of before:
    `recalibrate` recomputes them. The rest is as in `grow`.
    """
    return _evolved(pruning.prune(network.architecture, kept), network, optimizer, teacher, images)


def _evolved(
    mutation: Mutation,
    network: Backbone,
    optimizer: Optimizer | None,
    teacher: Backbone | None,
    images: Tensor | None,
) -> Evolved:
    if teacher is not None and teacher.architecture != network.architecture:
        raise UserError(
            "teacher: its architecture is not the network's. Make one with make_teacher(network), "
            "and let every mutation take it along."
        )
    learner = Learner(network)
    try:
        state = TrainingState(
            learner.state_dict(),
            None if teacher is None else teacher.state_dict(),
            {} if optimizer is None else named_moments(_fitting(optimizer, learner), learner),
        )
        after, record = perform(mutation, state, probe=images)
    except KeyError as error:
        raise UserError(f"optimizer: {error.args[0]}") from error
    mutated = build_learner(mutation, after, like=network)
    student = mutated.backbone
    alike = _alike(mutation)
    _take_over(student, network, alike)
    if optimizer is not None:
        optimizer = _regrouped(optimizer, network, student, alike)
        load_moments(optimizer, mutated, after.moments)
    if teacher is not None:
        assert after.teacher is not None
        following = build(mutation.after)
        like = next(teacher.parameters())
        following.to(device=like.device, dtype=like.dtype).train(teacher.training)
        following.load_state_dict(dict(after.teacher))
        _take_over(following, teacher, alike)
        teacher = following
    return Evolved(student, record, optimizer, teacher)


def _alike(mutation: Mutation) -> dict[str, str]:
    """For every tensor of the new network the old one's that it continues.

    For a new block's it is the like of it in the block that was the last one.
    """
    last = f"blocks.{len(mutation.before.axes) - 1}"
    return {
        name: tensor_map.source or f"{last}.{name.split('.', 2)[2]}"
        for name, tensor_map in mutation.maps.items()
    }


def _take_over(new: Backbone, old: Backbone, alike: Mapping[str, str]) -> None:
    """What a network is set to, beside its architecture and weights."""
    learnt = {name: parameter.requires_grad for name, parameter in old.named_parameters()}
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(learnt[alike[name]])
    new.gradient_checkpointing = old.gradient_checkpointing


def _fitting(optimizer: Optimizer, learner: Learner) -> Optimizer:
    """`optimizer`. Raises `UserError` where it is not over the network's parameters alone."""
    known = set(learner.parameters())
    strangers = sum(p not in known for group in optimizer.param_groups for p in group["params"])
    if strangers:
        raise UserError(
            f"optimizer: {strangers} of its parameters are not the network's. Give the optimizer "
            "of this very network; one with a head is mutated by "
            "sseg_nase.evolution.operators.perform."
        )
    return optimizer


def _regrouped(
    optimizer: Optimizer, old: Backbone, new: Backbone, alike: Mapping[str, str]
) -> Optimizer:
    """An optimizer of the same kind over `new`, with the groups of `optimizer` and no state.

    Weights and norms may be in groups of their own, and what is not trained in none.
    """
    names = {parameter: name for name, parameter in old.named_parameters()}
    group_of = {
        names[parameter]: number
        for number, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    groups: list[dict[str, Any]] = [
        {**{key: value for key, value in group.items() if key != "params"}, "params": []}
        for group in optimizer.param_groups
    ]
    for name, parameter in new.named_parameters():
        if alike[name] in group_of:
            groups[group_of[alike[name]]]["params"].append(parameter)
    # Every option stands in the groups: what the constructor takes it to be by default is not used.
    make: Callable[..., Optimizer] = type(optimizer)
    return make(groups)
