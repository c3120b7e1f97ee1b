"""The gradient through a step of the weights: a known one, finite differences, no traces."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.nets.mixed import MixedOperation
from sseg_nase.oneshot.bilevel import first_order, second_order
from sseg_nase.oneshot.gates import Gates

RATE, MOMENTUM, DECAY = 0.1, 0.9, 0.01


class Quadratic:
    """L_train = ½ wᵀA w − wᵀB α and L_val = ½ ‖w − c‖² + dᵀα: all its gradients are known."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.w = nn.Parameter(torch.randn(5).double())
        self.alpha = nn.Parameter(torch.randn(3).double())
        root = torch.randn(5, 5).double()
        self.a, self.b = root @ root.T, torch.randn(5, 3).double()
        self.c, self.d = torch.randn(5).double(), torch.randn(3).double()
        self.momentum = torch.randn(5).double()
        self.network = nn.Module()
        self.network.w = self.w

    def train_loss(self) -> Tensor:
        return 0.5 * self.w @ self.a @ self.w - self.w @ self.b @ self.alpha

    def val_loss(self) -> Tensor:
        return 0.5 * (self.w - self.c).square().sum() + self.d @ self.alpha

    def exact(self) -> Tensor:
        slope = self.a @ self.w - self.b @ self.alpha + DECAY * self.w + MOMENTUM * self.momentum
        ahead = self.w - RATE * slope
        return (self.d + RATE * self.b.T @ (ahead - self.c)).detach()


def test_the_second_order_of_a_quadratic_problem_is_the_known_one() -> None:
    problem = Quadratic()
    before = problem.w.detach().clone()
    loss, (found,) = second_order(
        problem.network,
        [problem.w],
        [problem.alpha],
        problem.train_loss,
        problem.val_loss,
        rate=RATE,
        momentum=MOMENTUM,
        buffers=[problem.momentum],
        weight_decay=DECAY,
    )
    torch.testing.assert_close(found, problem.exact(), rtol=1e-8, atol=1e-10)
    assert torch.equal(problem.w, before)
    assert loss != problem.val_loss()
    _, (at_the_weights,) = first_order([problem.alpha], problem.val_loss)
    assert torch.equal(at_the_weights, problem.d)


class Small(nn.Module):
    """A supernet of two mixed operations with BN."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        choices = "skip_connect|nor_conv_1x1|nor_conv_3x3"
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.edges = nn.ModuleList(MixedOperation(4, 4, 1, choices, name) for name in "ab")
        self.head = nn.Linear(4, 3)
        self.gates = Gates({"a": 3, "b": 3}, generator=torch.Generator().manual_seed(1))
        for edge in self.edges:
            edge.gates.append(self.gates)
        self.act = nn.Softplus()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for edge in self.edges:
            x = self.act(edge(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def small() -> tuple[Small, list[Tensor], Callable[[], Tensor], Callable[[], Tensor]]:
    net = Small().double().train()
    torch.manual_seed(2)
    x, y = torch.randn(2, 16, 3, 6, 6).double(), torch.randint(3, (2, 16))
    own = {id(p) for p in net.gates.parameters()}
    weights = [p for p in net.parameters() if p.requires_grad and id(p) not in own]
    losses = [lambda half=half: F.cross_entropy(net(x[half]), y[half]) for half in (0, 1)]
    return net, weights, losses[0], losses[1]


def test_the_second_order_is_the_slope_of_what_comes_after_a_step(small) -> None:
    net, weights, train_loss, val_loss = small
    alphas = list(net.gates.alphas)
    _, found = second_order(net, weights, alphas, train_loss, val_loss, rate=0.5)

    def after_a_step() -> float:
        kept = [w.detach().clone() for w in weights]
        slopes = torch.autograd.grad(train_loss(), weights)
        with torch.no_grad():
            for w, slope in zip(weights, slopes, strict=True):
                w.sub_(0.5 * slope)
        value = val_loss().item()
        with torch.no_grad():
            for w, before in zip(weights, kept, strict=True):
                w.copy_(before)
        return value

    step, slopes = 1e-5, []
    for alpha, row in itertools.product(alphas, range(3)):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                alpha[row] += sign * step
            sides.append(after_a_step())
            with torch.no_grad():
                alpha[row] -= sign * step
        slopes.append((sides[0] - sides[1]) / (2 * step))
    expected = torch.tensor(slopes).double()
    error = (torch.cat(found) - expected).norm() / expected.norm()
    assert error < 1e-3, error
    _, first = first_order(alphas, val_loss)
    assert (torch.cat(first) - expected).norm() / expected.norm() > 10 * error  # it matters


def test_at_rate_0_it_is_the_first_order(small) -> None:
    net, weights, train_loss, val_loss = small
    alphas = list(net.gates.alphas)
    loss, found = second_order(net, weights, alphas, train_loss, val_loss, rate=0.0)
    expected, first = first_order(alphas, val_loss)
    assert torch.equal(loss, expected)
    assert all(map(torch.equal, found, first))


def test_nothing_is_left_behind(small) -> None:
    net, weights, train_loss, val_loss = small
    kept = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    second_order(net, weights, list(net.gates.alphas), train_loss, val_loss, rate=0.5)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_loss_that_fails_leaves_the_weights_as_they_were(small) -> None:
    net, weights, train_loss, _ = small
    kept = [w.clone() for w in weights]

    def fails() -> Tensor:
        raise RuntimeError("no images")

    with pytest.raises(RuntimeError, match="no images"):
        second_order(net, weights, list(net.gates.alphas), train_loss, fails, rate=0.5)
    assert all(map(torch.equal, weights, kept))
