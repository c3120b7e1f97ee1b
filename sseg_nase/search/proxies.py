"""Zero-cost scores: what one batch says of a network before any training.

A score is a function `(network, images [B, C, S, S], labels [B]) -> float`, more being better; it
leaves the network as it was. The network gives logits, as those of `headed` do. Batch
statistics normalise, as running ones mean nothing yet. All depend on the batch and on the random
weights: keep B the same, and average over seeds.

Most of them fail to beat the number of parameters, so `params` and `macs` are scores, too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from sseg_nase.errors import UserError, did_you_mean
from sseg_nase.hardware.complexity import count_macs, count_params
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build
from sseg_nase.nets.description import Description
from sseg_nase.nets.fused import one_after_the_other

Score = Callable[["Headed", Tensor, Tensor], float]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
LAYERS = (nn.Conv2d, nn.Linear)
TINY = 1e-5
Found = TypeVar("Found")


class Headed(nn.Module):
    """A backbone and a linear classifier: what scores with a loss need.

    `shared`: what several scores of it have in common, by name, while nobody changes its weights.
    """

    shared: dict[str, Any] | None = None

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.architecture.features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, C, S, S]` → logits `[B, classes]`."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def headed(description: Description, classes: int, seed: int) -> Headed:
    """Return a freshly initialised network with a classifier, both by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        return Headed(build(description, generator=generator), classes)


def score(
    name: str,
    description: Description,
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[int] = (0,),
) -> float:
    """Return a score of the network of a description, its mean over `seeds`."""
    found = measure((name,), description, images, labels, seeds)
    return found[name]


def measure(
    names: Sequence[str],
    description: Description,
    images: Tensor,
    labels: Tensor,
    seeds: Sequence[int] = (0,),
) -> dict[str, float]:
    """Return several scores of one network, each its mean over `seeds`. Raises `UserError`."""
    check_batch(images, labels)
    functions = {name: named_score(name) for name in names}
    found: dict[str, list[float]] = {name: [] for name in names}
    for seed in seeds:
        network = headed(description, int(labels.max()) + 1, seed).to(images.device)
        network.shared = {}  # one batch, and weights that nothing below changes
        for name, function in functions.items():
            found[name].append(function(network, images, labels))
    return {name: sum(values) / len(values) for name, values in found.items()}


def named_score(name: str) -> Score:
    """Return a score by name. Raises `UserError` with what there is."""
    if name not in SCORES:
        near = did_you_mean(name, SCORES)
        raise UserError(f"There is no score {name!r}.{near} Known: {', '.join(SCORES)}.")
    return SCORES[name]


def check_batch(images: Tensor, labels: Tensor) -> None:
    """Raise `UserError` for a batch that says nothing: too small, or with an image twice."""
    if len(images) != len(labels) or len(images) < 2:
        raise UserError(
            f"A batch of {len(images)} images and {len(labels)} labels: as many of both are "
            "needed, and two at least."
        )
    if len(images.flatten(1).unique(dim=0)) < len(images):
        raise UserError("The batch holds an image twice; scores of correlation would be infinite.")


# Scores.


def params(network: Headed, images: Tensor, labels: Tensor) -> float:
    """Trainable parameters of the backbone: the line to beat."""
    return float(count_params(network.backbone))


def macs(network: Headed, images: Tensor, labels: Tensor) -> float:
    """Multiply-accumulates of the backbone for one image."""
    return float(count_macs(network.backbone, images.shape[-1], images.shape[1]))


def l2_norm(network: Headed, images: Tensor, labels: Tensor) -> float:
    """Σ_layers ‖θ‖₂."""
    return float(sum(weight.detach().norm().item() for weight in _weights(network)))


def grad_norm(network: Headed, images: Tensor, labels: Tensor) -> float:
    """Σ_layers ‖∂L/∂θ‖₂."""
    return float(sum(g.norm().item() for _, g in _gradients(network, images, labels)))


def snip(network: Headed, images: Tensor, labels: Tensor) -> float:
    """Σ |θ ⊙ ∂L/∂θ| (Lee et al. 2019)."""
    return sum((w * g).abs().sum().item() for w, g in _gradients(network, images, labels))


def plain(network: Headed, images: Tensor, labels: Tensor) -> float:
    """Σ θ ⊙ ∂L/∂θ."""
    return sum((w * g).sum().item() for w, g in _gradients(network, images, labels))


def grasp(network: Headed, images: Tensor, labels: Tensor) -> float:
    """−Σ θ ⊙ (H g), g = ∇L (Wang et al. 2020)."""
    with _copy(network) as net:
        weights = _weights(net)
        loss = F.cross_entropy(net(images), labels)
        first = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        product = sum((g * g.detach()).sum() for g in first if g is not None)
        second = torch.autograd.grad(product, weights, allow_unused=True)  # type: ignore[arg-type]
        pairs = zip(weights, second, strict=True)
        return -sum((w * h).sum().item() for w, h in pairs if h is not None)


def fisher(network: Headed, images: Tensor, labels: Tensor) -> float:
    """Σ_channels ½ · mean_b (Σ_hw a · ∂L/∂a)², a after convolutions and linear layers."""
    with _copy(network) as net:
        kept: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output.retain_grad()
            kept.append(output)

        for part in net.modules():
            if isinstance(part, LAYERS):
                part.register_forward_hook(keep)
        F.cross_entropy(net(images), labels).backward()
        total = 0.0
        for output in kept:
            if output.grad is not None:
                product = (output * output.grad).detach()
                per_channel = product.flatten(2).sum(2) if product.dim() > 2 else product
                total += 0.5 * per_channel.square().mean(0).sum().item()
        return total


def synflow(network: Headed, images: Tensor, labels: Tensor) -> float:
    """ln Σ |θ ⊙ ∂R/∂θ|, R the sum of outputs with |θ| for ones, without BN (Tanaka et al. 2020)."""
    with _copy(network) as net:
        _without_norms(net)
        net.double()
        with torch.no_grad():
            for weight in net.parameters():
                weight.abs_()
        ones = torch.ones(1, *images.shape[1:], dtype=torch.float64, device=images.device)
        weights = _weights(net)
        gradients = torch.autograd.grad(net(ones).sum(), weights, allow_unused=True)
        pairs = zip(weights, gradients, strict=True)
        total = sum((w * g).abs().sum().item() for w, g in pairs if g is not None)
        return math.log(max(total, 1e-300))


def jacov(network: Headed, images: Tensor, labels: Tensor) -> float:
    """−Σ [ln(ν + 1e-5) + 1/(ν + 1e-5)], ν of the correlation of input gradients (Mellor 2020)."""
    values = torch.linalg.eigvalsh(_correlation(_jacobian(network, images))) + TINY
    values = values.clamp_min(TINY / 10)
    return float(-(values.log() + 1 / values).sum().item())


def epe_nas(network: Headed, images: Tensor, labels: Tensor) -> float:
    """Σ_classes |Σ ln(|correlation of input gradients| + 1e-5)| (Lopes et al. 2021)."""
    counts = torch.bincount(labels)
    if not (counts > 1).any():
        raise UserError("epe_nas needs two images of a class in the batch.")
    rows = _jacobian(network, images)
    return sum(
        (_correlation(rows[labels == label]).abs() + TINY).log().sum().abs().item()
        for label in torch.nonzero(counts > 1).flatten()
    )


def nwot(network: Headed, images: Tensor, labels: Tensor) -> float:
    """ln det Σ_ReLU [x xᵀ + (1−x)(1−x)ᵀ], x which units are active (Mellor et al., ICML 2021)."""
    seen = _Activations(len(images))
    with _copy(network) as net, torch.no_grad(), one_after_the_other(), seen:
        net(images)
    if seen.kernel is None:
        raise UserError("nwot counts active ReLUs, and this network has none. Use another score.")
    return float(torch.linalg.slogdet(seen.kernel)[1].item())


def zen(network: Headed, images: Tensor, labels: Tensor) -> float:
    """ln E‖f(x) − f(x + 0.01 ε)‖₁ + Σ_BN ln √(mean σ²), all Gaussian (Lin et al., ICCV 2021).

    f: the embedding's last map where the network gives it, else the embedding.
    """
    with _copy(network) as net, torch.no_grad():
        generator = torch.Generator().manual_seed(0)

        def draw(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator).to(like)

        for part in net.modules():
            if isinstance(part, LAYERS):
                part.weight.copy_(draw(part.weight))
        spreads: list[float] = []
        for part in net.modules():
            if isinstance(part, NORMS):
                part.register_forward_pre_hook(lambda _, given: spreads.append(_spread(given[0])))
        embed = getattr(net.backbone, "last_map", net.backbone)
        x = draw(images)
        first = embed(x)
        logs = sum(0.5 * math.log(max(spread, 1e-30)) for spread in spreads)
        other = embed(x + 0.01 * draw(images))
        moved = (first - other).abs().flatten(1).sum(1).mean().item()
        return math.log(max(moved, 1e-30)) + logs


def _spread(x: Tensor) -> float:
    """The mean over channels of the variance of a batch."""
    return x.transpose(0, 1).flatten(1).var(1, unbiased=False).mean().item()


SCORES: dict[str, Score] = {
    function.__name__: function
    for function in (
        params,
        macs,
        l2_norm,
        grad_norm,
        snip,
        plain,
        grasp,
        fisher,
        synflow,
        jacov,
        nwot,
        zen,
        epe_nas,
    )
}


# Within.


@contextmanager
def _copy(network: Headed) -> Iterator[Headed]:
    """A copy in train mode that is thrown away, with all of torch's settings as they were."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        kept, network.shared = network.shared, None
        try:
            net = copy.deepcopy(network).train().requires_grad_()
        finally:
            network.shared = kept
        yield net


def _shared(network: Headed, name: str, make: Callable[[], Found]) -> Found:
    if network.shared is None:
        return make()
    if name not in network.shared:
        network.shared[name] = make()
    found: Found = network.shared[name]
    return found


def _weights(network: nn.Module) -> list[Tensor]:
    return [part.weight for part in network.modules() if isinstance(part, LAYERS)]


def _gradients(network: Headed, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Weights with the gradients of the loss; a layer that nothing is read from has none."""
    return _shared(network, "gradients", lambda: _loss_gradients(network, images, labels))


def _loss_gradients(network: Headed, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    with _copy(network) as net:
        weights = _weights(net)
        loss = F.cross_entropy(net(images), labels)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        pairs = zip(weights, gradients, strict=True)
        return [(weight.detach(), g) for weight, g in pairs if g is not None]


def _jacobian(network: Headed, images: Tensor) -> Tensor:
    """Rows `[B, C · S · S]`: the gradient of the sum of an image's outputs by its pixels."""
    return _shared(network, "jacobian", lambda: _input_gradients(network, images))


def _input_gradients(network: Headed, images: Tensor) -> Tensor:
    with _copy(network) as net:
        x = images.clone().requires_grad_()
        (rows,) = torch.autograd.grad(net(x).sum(), x, allow_unused=True)
        return (torch.zeros_like(x) if rows is None else rows).flatten(1).double()


def _correlation(rows: Tensor) -> Tensor:
    """Correlations `[B, B]`; a row without spread correlates with nothing but itself."""
    centred = rows - rows.mean(1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    unit = torch.where(length > 0, centred / length.clamp_min(1e-300), torch.zeros_like(centred))
    found = unit @ unit.T
    found.fill_diagonal_(1.0)
    return found


def _without_norms(module: nn.Module) -> None:
    for name, part in module.named_children():
        if isinstance(part, NORMS):
            setattr(module, name, nn.Identity())
        else:
            _without_norms(part)


class _Activations(TorchDispatchMode):
    """Sums over every ReLU that runs, as a module or not, how alike its pattern is per pair."""

    def __init__(self, batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.batch = batch
        self.kernel: Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "overloadpacket", func)
        if name in (torch.ops.aten.relu, torch.ops.aten.relu_) and len(args[0]) == self.batch:
            active = (args[0] > 0).flatten(1).float()
            idle = 1 - active
            found = (active @ active.T + idle @ idle.T).double()
            self.kernel = found if self.kernel is None else self.kernel + found
        return func(*args, **(kwargs or {}))


def ranks(scores: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[float]:
    """Return the sum of ranks over several scores, per network: a vote."""
    total = [0.0] * len(scores)
    for name in names:
        order = sorted(range(len(scores)), key=lambda at: scores[at][name])
        for rank, at in enumerate(order):
            total[at] += rank
    return total
