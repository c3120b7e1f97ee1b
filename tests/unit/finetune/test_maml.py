from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from sseg_nase.config.compose import load
from sseg_nase.finetune import maml
from sseg_nase.finetune.head_methods import method_of
from sseg_nase.finetune.learner import EpisodeLearner, linear_head
from sseg_nase.finetune.maml import Classifier, Weights, adapt, adapted_scores
from sseg_nase.nets.architecture import Architecture, Block
from sseg_nase.nets.evolvable import EvolvableCNN

LR, STEPS = 0.3, 2


def tiny(activation: str = "gelu") -> EpisodeLearner:
    generator = torch.Generator().manual_seed(3)
    blocks = (Block(2), Block(3, pool=False))
    architecture = Architecture(blocks, resolution=4, activation=activation, embedding="flatten")
    backbone = EvolvableCNN(architecture, generator=generator)
    return EpisodeLearner(backbone, linear_head(architecture.features, 2, generator))


def images(count: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def outer_loss(classifier: nn.Module, weights: Weights, *, second_order: bool) -> torch.Tensor:
    truth = torch.arange(2).repeat_interleave(3)
    adapted = adapt(
        classifier, weights, images(6, 1), truth, steps=STEPS, lr=LR, second_order=second_order
    )
    return F.cross_entropy(functional_call(classifier, dict(adapted), (images(6, 2),)), truth)


def differences(classifier: nn.Module, weights: Weights) -> dict[str, torch.Tensor]:
    """The gradient of the loss after the inner steps, by central differences in every weight."""
    step, found = 1e-6, {}
    for name, tensor in weights.items():
        gradient = torch.zeros_like(tensor)
        for i in range(tensor.numel()):
            losses = []
            for sign in (1, -1):
                moved = tensor.detach().clone()
                moved.view(-1)[i] += sign * step
                varied = {**weights, name: moved.requires_grad_()}
                losses.append(outer_loss(classifier, varied, second_order=False).item())
            gradient.view(-1)[i] = (losses[0] - losses[1]) / (2 * step)
        found[name] = gradient
    return found


def test_the_gradient_is_that_through_the_inner_steps() -> None:
    classifier = Classifier(tiny()).double().train()
    weights = dict(classifier.named_parameters())
    expected = differences(classifier, weights)
    names = list(weights)

    def gradients(second_order: bool) -> list[torch.Tensor]:
        loss = outer_loss(classifier, weights, second_order=second_order)
        return list(torch.autograd.grad(loss, list(weights.values())))

    for name, gradient in zip(names, gradients(True), strict=True):
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-7, msg=name)
    first_order = gradients(False)
    far = [
        (g - expected[name]).norm() / expected[name].norm().clamp_min(1e-9)
        for name, g in zip(names, first_order, strict=True)
    ]
    assert max(far) > 0.01, "without second order it is another gradient"


def test_inner_steps_are_plain_gradient_descent() -> None:
    learner = tiny("relu")
    classifier = Classifier(learner).double().train()
    truth = torch.arange(2).repeat_interleave(3)
    weights = dict(classifier.named_parameters())
    adapted = adapt(classifier, weights, images(6, 1), truth, steps=4, lr=LR, second_order=False)
    before = {name: tensor.detach().clone() for name, tensor in weights.items()}
    optimizer = torch.optim.SGD(classifier.parameters(), lr=LR)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(classifier(images(6, 1)), truth).backward()
        optimizer.step()
    for name, tensor in classifier.named_parameters():
        torch.testing.assert_close(adapted[name], tensor)
        assert not torch.equal(before[name], tensor)


def test_a_test_leaves_the_network_as_it_was() -> None:
    learner = tiny("relu").eval()
    before = {name: tensor.clone() for name, tensor in learner.state_dict().items()}
    support = images(6, 1, torch.float32).view(2, 3, 3, 4, 4)
    query = images(5, 2, torch.float32)
    adapted = adapted_scores(learner, support, query, steps=20, lr=0.5)
    assert adapted.shape == (5, 2)
    assert not adapted.requires_grad
    on_support = adapted_scores(learner, support, support.flatten(0, 1), steps=20, lr=0.5)
    assert (on_support.argmax(dim=1) == torch.arange(2).repeat_interleave(3)).float().mean() > 0.8
    for name, tensor in learner.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(p.requires_grad is False for p in learner.parameters())
    assert not learner.backbone.training


@pytest.mark.parametrize("autocast", [False, True])
def test_the_gradient_is_that_of_torchs_own_norms(
    autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a chain with ReLU and pooling, in the precisions of training."""
    classifier = Classifier(tiny("relu")).to(memory_format=torch.channels_last).train()
    weights = dict(classifier.named_parameters())
    truth = torch.arange(2).repeat_interleave(3)

    def gradients() -> list[torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            support, query = (images(6, seed, torch.float32) for seed in (1, 2))
            adapted = adapt(
                classifier, weights, support, truth, steps=STEPS, lr=LR, second_order=True
            )
            logits = functional_call(classifier, dict(adapted), (query,)).float()
        return list(torch.autograd.grad(F.cross_entropy(logits, truth), list(weights.values())))

    found = gradients()
    monkeypatch.setattr(maml, "twice_differentiable", lambda module: nullcontext())
    error = 0.1 if autocast else 1e-4
    for ours, torchs in zip(found, gradients(), strict=True):
        assert (ours - torchs).norm() <= error * torchs.norm() + 1e-6


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_episodes_side_by_side_are_evaluated_as_one_by_one(precision: str) -> None:
    learner = tiny("relu")
    pool = images(12, 5, torch.float32)
    generator = torch.Generator().manual_seed(6)
    chosen = torch.stack([torch.randperm(12, generator=generator) for _ in range(5)])
    support, query = chosen[:, :4].view(5, 2, 2, 1).float(), chosen[:, 4:, None].float()
    threads_inside = []

    def read(indices: torch.Tensor) -> torch.Tensor:
        threads_inside.append(torch.get_num_threads())
        return pool[indices]

    named = ["finetune=maml", "evaluation.method=maml", "evaluation.normalize=none"]
    evaluation = load([*named, "evaluation.maml.steps=3"]).evaluation
    method = method_of(learner, evaluation, read, precision)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = method.scores(support, query, evaluation)
        torch.set_num_threads(3)
        found = method.scores(support, query, evaluation)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert set(threads_inside) == {1}
    assert torch.equal(found, expected)
    one = adapted_scores(
        learner, pool[chosen[0, :4]].view(2, 2, 3, 4, 4), pool[chosen[0, 4:]], steps=3, lr=0.01
    )
    assert torch.equal(found[0], one) == (precision == "32-true")
    torch.testing.assert_close(found[0], one, rtol=0.1, atol=0.05)


def test_what_training_has_frozen_is_not_adapted_in_a_test() -> None:
    learner = tiny().double().eval()
    for norm in (part for part in learner.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.running_mean += 0.3  # statistics that are not those of the batch
    learner.backbone.requires_grad_(False)
    support, query = images(6, 1).unflatten(0, (2, 3)), images(5, 2)
    found = adapted_scores(learner, support, query, steps=STEPS, lr=LR)
    # By hand: gradient descent of the head on features as they are.
    seen, truth = learner.backbone(support.flatten(0, 1)), torch.arange(2).repeat_interleave(3)
    weight, bias = (p.detach().clone() for p in learner.head.parameters())
    for _ in range(STEPS):
        error = (seen @ weight.T + bias).softmax(1) - F.one_hot(truth, 2)
        weight, bias = weight - LR * error.T @ seen / 6, bias - LR * error.mean(0)
    expected = learner.backbone(query) @ weight.T + bias
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-6)
