from __future__ import annotations

import copy
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn

from sseg_nase.config.compose import load
from sseg_nase.ssl.teacher import batch_statistics, ema_decay, ema_update, make_teacher


def network(seed: int, width: int = 6) -> nn.Sequential:
    net = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, width, 3, bias=False),
            norm=nn.BatchNorm2d(width),
            head=nn.Linear(width, 4),
        )
    ).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))
            else:
                tensor.fill_(seed)
    return net


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999, 1.0])
def test_the_update_equals_a_slow_loop(decay: float, own: bool) -> None:
    teacher, student = make_teacher(network(1)), network(2)
    before, source = copy.deepcopy(teacher.state_dict()), copy.deepcopy(student.state_dict())
    ema_update(teacher, student, decay, own_statistics=own)
    weights = dict(student.named_parameters())
    for name, after in teacher.state_dict().items():
        if name in weights:
            expected = torch.tensor(
                [
                    decay * t + (1 - decay) * s
                    for t, s in zip(
                        before[name].flatten().tolist(),
                        source[name].flatten().tolist(),
                        strict=True,
                    )
                ],
                dtype=torch.float64,
            ).view_as(after)
            assert torch.allclose(after, expected, rtol=0, atol=1e-14)
        elif name.startswith("norm."):  # the teacher's own statistics, or the student's
            assert torch.equal(after, (before if own else source)[name])
        else:
            raise AssertionError(name)
    assert all(torch.equal(student.state_dict()[name], value) for name, value in source.items())


def test_tensors_are_matched_by_name_not_by_place() -> None:
    student = network(2)
    turned = nn.Sequential(OrderedDict(reversed(list(network(1).named_children()))))
    ema_update(turned, student, 0.0)
    turned_parameters = dict(turned.named_parameters())
    for name, value in student.named_parameters():
        assert torch.equal(turned_parameters[name], value)


def test_names_that_differ_are_named() -> None:
    student = network(1)
    student.add_module("extra", nn.Linear(2, 2))
    teacher = network(1)
    teacher.add_module("old", nn.Linear(2, 2, bias=False))
    with pytest.raises(ValueError, match=r"teacher has old\.weight.*student has extra\.weight"):
        ema_update(teacher, student, 0.5)


def test_buffers_that_differ_are_named() -> None:
    student = network(1)
    student.register_buffer("mask", torch.ones(2))
    with pytest.raises(ValueError, match="only the student has mask"):
        ema_update(network(1), student, 0.5)


def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"stem\.weight is \[6, 3, 3, 3\].*\[8, 3, 3, 3\]"):
        ema_update(network(1), network(1, width=8), 0.5)


def test_a_mismatch_leaves_the_teacher_alone() -> None:
    teacher, student = network(1), network(2)
    before = copy.deepcopy(teacher.state_dict())
    student.register_buffer("mask", torch.ones(2))
    with pytest.raises(ValueError, match="mask"):
        ema_update(teacher, student, 0.5)
    assert all(torch.equal(teacher.state_dict()[name], value) for name, value in before.items())


def test_buffers_that_are_no_statistics_are_the_students() -> None:
    teacher, student = network(1), network(2)
    for number, part in enumerate((teacher, teacher.stem, student, student.stem)):
        part.register_buffer("routing", torch.full((2,), float(number)))
    ema_update(teacher, student, 0.5)
    assert (teacher.routing == 2).all()
    assert (teacher.stem.routing == 3).all()


def test_a_network_without_buffers_is_fine() -> None:
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    ema_update(teacher, student, 0.0)
    assert torch.equal(teacher.weight, student.weight)


def test_a_teacher_is_a_frozen_copy_in_eval_mode() -> None:
    student = network(1).train()
    teacher = make_teacher(student)
    assert not teacher.training
    assert student.training
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert all(weight.requires_grad for weight in student.parameters())
    for (name, a), b in zip(
        teacher.state_dict().items(), student.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.data_ptr() != b.data_ptr()


def test_updating_does_not_enter_the_graph() -> None:
    teacher, student = make_teacher(network(1)), network(2)
    ema_update(teacher, student, 0.9)
    assert all(weight.grad_fn is None and weight.is_leaf for weight in teacher.parameters())


@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_batch_statistics_normalise_and_are_tracked_where_asked(
    training: bool, track: bool
) -> None:
    target = make_teacher(network(1)).train(training)
    # A negative variance, which the drawn buffers have, would hide a use of the running ones.
    before = copy.deepcopy(target.state_dict())
    modes = [part.training for part in target.modules()]
    x = torch.randn(5, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = copy.deepcopy(target).train()
    with batch_statistics(target, track=track):
        found = target.norm(target.stem(x))
    assert [part.training for part in target.modules()] == modes
    assert target.norm.track_running_stats
    assert torch.equal(found, expected.norm(expected.stem(x)))
    assert not torch.equal(expected.norm.running_mean, before["norm.running_mean"])
    tracked = expected.state_dict() if track else before
    assert all(torch.equal(target.state_dict()[name], value) for name, value in tracked.items())


def test_the_decay_is_constant_or_rises_to_1_as_the_paper_says() -> None:
    simclr, byol = load().ssl, load(["ssl=byol"]).ssl
    assert [ema_decay(k, 100, simclr) for k in (0, 50, 100)] == [0.999] * 3
    for k in range(0, 101, 10):
        expected = 1 - (1 - 0.996) * (math.cos(math.pi * k / 100) + 1) / 2
        assert ema_decay(k, 100, byol) == pytest.approx(expected, abs=1e-15)
    assert ema_decay(0, 100, byol) == pytest.approx(0.996)
    assert ema_decay(100, 100, byol) == ema_decay(200, 100, byol) == 1
