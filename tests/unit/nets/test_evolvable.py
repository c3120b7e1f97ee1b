from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture, Block
from sseg_nase.nets.evolvable import ConvBlock, EvolvableCNN, Learner, ProjectionHead
from sseg_nase.nets.mutation import fresh_state
from sseg_nase.nets.mutations.grow import grow
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 6, side: int = 16, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, side, side, generator=generator(seed), dtype=torch.float64)


def network(architecture: Architecture, seed: int = 0) -> EvolvableCNN:
    net = EvolvableCNN(architecture, generator=generator(seed)).double()
    random = generator(seed + 1)
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if "norm" in name and tensor.dim():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random, dtype=tensor.dtype))
    return net


def embed(net: EvolvableCNN, x: Tensor, *, training: bool = False) -> Tensor:
    return copy.deepcopy(net).train(training)(x).detach()


def seed_network(**options: object) -> EvolvableCNN:
    return network(Architecture.seed([4, 5, 6], resolution=16, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu"])
@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("pool", [True, False])
def test_a_plain_block_is_convolution_norm_activation_pool(
    activation: str, batch_norm: bool, pool: bool
) -> None:
    block = ConvBlock(3, 5, activation=activation, batch_norm=batch_norm, pool=pool).double()
    x = images()
    y = F.conv2d(x, block.conv.weight, block.conv.bias, padding=1)
    if batch_norm:
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), unbiased=False, keepdim=True)
        y = (y - mean) / (var + 1e-5).sqrt()
    y = {"relu": F.relu, "gelu": F.gelu}.get(activation, lambda y: F.leaky_relu(y, 0.1))(y)
    if pool:
        y = y.unfold(2, 2, 2).unfold(3, 2, 2).amax((-2, -1))
    assert torch.allclose(block(x), y, rtol=1e-10, atol=1e-12)
    assert (block.conv.bias is None) == batch_norm


@pytest.mark.parametrize("width", [2, 3, 5])
@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("leaky_relu", 0.1)])
def test_an_unrouted_shortcut_pads_or_cuts_channels(
    width: int, activation: str, slope: float
) -> None:
    block = ConvBlock(3, width, activation=activation, residual=True, pool=False).double().eval()
    x = images()
    branch = block.norm(block.conv(F.leaky_relu(x, slope)))
    expected = [branch[:, c] + (x[:, c] if c < 3 else 0) for c in range(width)]
    assert torch.equal(block(x), torch.stack(expected, 1))


def test_a_routed_shortcut_is_a_matrix_over_channels() -> None:
    block = ConvBlock(3, 2, residual=True, routed=True, pool=False).double().eval()
    assert block.routing is not None
    block.routing.copy_(torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0]]))
    x = images()
    branch = block.norm(block.conv(F.relu(x)))
    expected = branch + torch.stack([(x[:, 1] + x[:, 2]) / 2, x[:, 0]], 1)
    assert torch.allclose(block(x), expected, rtol=1e-12, atol=1e-12)
    assert "routing" not in dict(block.named_parameters())


@pytest.mark.parametrize("resolution", [32, 84])
@pytest.mark.parametrize("embedding", ["average", "flatten"])
def test_twelve_blocks_run(resolution: int, embedding: str) -> None:
    architecture = Architecture.seed([4] * 12, resolution=resolution, embedding=embedding)
    net = EvolvableCNN(architecture, generator=generator(0))
    x = torch.randn(2, 3, resolution, resolution, generator=generator(1))
    assert net(x).shape == (2, architecture.features)
    net(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_initialization_follows_the_generator_alone() -> None:
    architecture = Architecture.seed([4, 5], resolution=16)
    first, again, other = (
        EvolvableCNN(architecture, generator=generator(s)).state_dict() for s in (3, 3, 4)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.conv.weight"], other["blocks.0.conv.weight"])


def test_masks_silence_channels() -> None:
    net = seed_network()
    masks = [torch.ones(c, dtype=torch.bool) for c in (4, 5, 6)]
    x = images()
    assert torch.equal(embed(net, x), net.eval()(x, masks=masks))
    masks[0][1] = False
    masks[2][4] = False
    silenced = copy.deepcopy(net).eval()
    with torch.no_grad():
        silenced.blocks[1].conv.weight[:, 1] = 0
    expected = silenced(x)
    expected[:, 4] = 0
    assert torch.allclose(net(x, masks=masks), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("residual", [True, False])
def test_gradient_checkpointing_changes_nothing_but_memory(residual: bool) -> None:
    plain = seed_network(residual=residual)
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing = True
    for net in (plain, saving):
        net.train()
        for seed in (1, 2):
            net(images(seed=seed)).square().sum().backward()
    for (name, expected), parameter in zip(
        plain.named_parameters(), saving.parameters(), strict=True
    ):
        assert torch.equal(expected.grad, parameter.grad), name
    for (name, expected), buffer in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(expected, buffer), name
    assert all(block.norm.momentum == 0.1 for block in saving.blocks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("embedding", ["average", "flatten"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_growing_by_hand_keeps_the_function(
    training: bool, embedding: str, batch_norm: bool
) -> None:
    net = seed_network(embedding=embedding, batch_norm=batch_norm)
    x = images()
    before = embed(net, x, training=training)
    assert net.grow()
    assert torch.allclose(embed(net, x, training=training), before, rtol=1e-12, atol=1e-12)
    assert net.grow(out_channels=9, seed=3)
    after = embed(net, x, training=training)
    assert torch.allclose(after[:, : before.shape[1]], before, rtol=1e-12, atol=1e-12)
    assert not after[:, before.shape[1] :].any()
    assert net.get_architecture_summary()["channels"] == [4, 5, 6, 6, 9]
    assert net.get_architecture_summary()["params"] == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("residual", [True, False])
def test_widening_by_hand_keeps_the_embedding(training: bool, block: int, residual: bool) -> None:
    net = seed_network(residual=residual)
    x = images()
    before = embed(net, x, training=training)
    assert net.widen(block)
    assert net.architecture.channels[block] == round(1.5 * (4, 5)[block])
    assert torch.allclose(embed(net, x, training=training), before, rtol=1e-11, atol=1e-11)


def test_widening_the_last_block_by_hand_repeats_features() -> None:
    net = seed_network()
    x = images()
    before = embed(net, x)
    net.widen(2, ratio=2, seed=5)
    after = embed(net, x)
    # Not bit for bit: a processor may add up a convolution of twice as many channels otherwise.
    assert torch.allclose(after[:, :6], before, rtol=1e-12, atol=1e-12)
    assert torch.allclose(after[:, 6:].sum(1), before.sum(1))


def test_impossible_changes_by_hand_are_refused_and_leave_the_network_alone() -> None:
    net = seed_network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(UserError, match="accepted 0 to 2"):
        net.widen(3)
    with pytest.raises(UserError, match="accepted 0 to 2"):
        net.widen(-1)
    with pytest.raises(UserError, match="it has 4 already"):
        net.widen(0, ratio=1.05)
    with pytest.raises(UserError, match="use at least 6"):
        net.grow(5)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("training", [True, False])
def test_becoming_keeps_mode_dtype_and_freezing(training: bool) -> None:
    net = seed_network().train(training).requires_grad_(False)
    net.gradient_checkpointing = True
    for change in (
        grow(net.architecture, out_channels=7),
        widen(net.architecture, 0),
        prune(net.architecture, [[0, 2], [1], [0, 5]]),
    ):
        changed = copy.deepcopy(net)
        changed.become(change)
        assert changed.architecture == change.after
        assert all(part.training == training for part in changed.modules())
        assert all(p.dtype == torch.float64 and not p.requires_grad for p in changed.parameters())
        assert changed.gradient_checkpointing


def test_fresh_weights_depend_on_the_mutation_alone() -> None:
    seed = Architecture.seed([4, 5], resolution=16)
    first, again = (fresh_state(grow(seed, out_channels=7, seed=2)) for _ in range(2))
    other = fresh_state(grow(seed, out_channels=7, seed=3))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.2.conv.weight"], other["blocks.2.conv.weight"])
    assert not first["blocks.2.norm.weight"].any()


def test_mutating_draws_nothing_from_the_global_generator() -> None:
    net = seed_network()
    state = torch.get_rng_state()
    net.grow(8)
    net.widen(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_projection_head_by_hand() -> None:
    head = ProjectionHead(5, 7, 4, generator=generator(0)).double().eval()
    x = torch.randn(3, 5, generator=generator(1), dtype=torch.float64)
    hidden = F.relu(x @ head.fc1.weight.T / (1 + 1e-5) ** 0.5)
    expected = hidden @ head.fc2.weight.T + head.fc2.bias
    assert torch.allclose(head(x), expected, rtol=1e-12, atol=1e-12)


def test_a_learner_returns_embeddings_and_projections() -> None:
    architecture = Architecture((Block(4), Block(6)), resolution=16, embedding="flatten")
    learner = Learner(
        network(architecture), ProjectionHead(architecture.features, 8, 5).double()
    ).eval()
    features, projections = learner(images())
    assert features.shape == (6, 6 * 4 * 4)
    assert torch.equal(projections, learner.head(features))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_folded_for_inference_it_computes_the_same(
    residual: bool, activation: str, batch_norm: bool
) -> None:
    architecture = Architecture.seed(
        (4, 6, 8), resolution=16, residual=residual, activation=activation, batch_norm=batch_norm
    )
    generator = torch.Generator().manual_seed(0)
    network = EvolvableCNN(architecture, generator=generator).double().train()
    images = torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=generator)
    network(images)  # moves the running statistics
    before = {name: value.clone() for name, value in network.state_dict().items()}
    folded = network.for_inference()
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in folded.modules())
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    torch.testing.assert_close(folded(images), network.eval()(images), rtol=1e-10, atol=1e-10)
