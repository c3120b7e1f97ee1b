"""More than one process: real groups of two, against one process on the whole batch."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.nets.architecture import Architecture, Block
from sseg_nase.nets.evolvable import EvolvableCNN, Learner, ProjectionHead
from sseg_nase.ssl.methods import METHODS, Teaching, make_learner
from sseg_nase.ssl.objectives import nt_xent
from sseg_nase.ssl.teacher import make_teacher
from sseg_nase.training.distributed import (
    WorkerError,
    any_rank,
    build_fabric,
    gather_rows,
    ranks,
    same_everywhere,
    synchronize_batch_norm,
    synchronizing,
    workers,
)

RANKS = 2
THREADS = 4
VARIABLES = {  # libraries set others when they load
    *("RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"),
}


def together(function: Callable[..., Any], *args: Any) -> Any:
    """What `function(rank, *args)` returns on rank 0, while rank 1 runs it, too."""
    with workers(function, *args, devices=RANKS):
        return function(0, *args)


def everything(rank: int) -> dict[str, Any]:
    """All that a group can be asked in one life: starting one takes seconds."""
    fabric = build_fabric("cpu", RANKS, "32-true")
    return {
        "norms": norms_of_rank(fabric, rank),
        "steps": steps_of_rank(fabric, rank),
        "methods": methods_of_rank(fabric, rank),
        "lonely": lonely(rank),
        "values": values_of_rank(rank),
    }


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with left_as_it_was():
        found = together(everything)
    assert torch.get_num_threads() == THREADS
    torch.set_num_threads(threads)
    return found


@contextlib.contextmanager
def left_as_it_was() -> Iterator[None]:
    """Environment, group and children are afterwards as before."""
    children, before = active_children(), {name: os.environ.get(name) for name in VARIABLES}
    yield
    assert {name: os.environ.get(name) for name in VARIABLES} == before
    assert not dist.is_initialized()
    assert active_children() == children


def share(x: Tensor, rank: int) -> Tensor:
    """The rows of one rank."""
    return x.chunk(RANKS)[rank]


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-30)).item()


# -- batch normalisation ---------------------------------------------------------------------------

NORMS: dict[str, tuple[type[nn.Module], tuple[int, ...], float | None, torch.dtype, float]] = {
    "1d": (nn.BatchNorm1d, (6, 3), 0.1, torch.float64, 1e-12),
    "1d of sequences": (nn.BatchNorm1d, (6, 3, 5), 0.3, torch.float64, 1e-12),
    "2d": (nn.BatchNorm2d, (8, 4, 5, 3), 0.1, torch.float64, 1e-12),
    "2d, mean over all batches": (nn.BatchNorm2d, (8, 4, 5, 3), None, torch.float64, 1e-12),
    "2d in float32": (nn.BatchNorm2d, (8, 4, 5, 3), 0.1, torch.float32, 1e-5),
    "2d of bfloat16": (nn.BatchNorm2d, (8, 4, 5, 3), 0.1, torch.bfloat16, 1e-2),
}


def norm_layer(name: str) -> nn.Module:
    kind, shape, momentum, dtype, _ = NORMS[name]
    layer = kind(shape[1], momentum=momentum)
    layer.to(torch.promote_types(dtype, torch.float32))  # as under autocast
    with torch.no_grad():
        layer.weight.copy_(1 + 0.3 * drawn(shape[1], seed=1))
        layer.bias.copy_(drawn(shape[1], seed=2))
    return layer


def norm_batches(name: str) -> list[tuple[Tensor, Tensor]]:
    """Inputs and what their outputs are weighted with; the ranks' statistics differ."""
    _, shape, _, dtype, _ = NORMS[name]
    batches = []
    for seed in (3, 5):
        x = drawn(*shape, seed=seed)
        x[len(x) // 2 :] = 10 + 3 * x[len(x) // 2 :]
        batches.append((x.to(dtype), drawn(*shape, seed=seed + 1)))
    return batches


def norm_steps(
    layer: nn.Module, module: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Two training steps of `module`, the same as or around `layer`."""
    found = {}
    for index, (x, weights) in enumerate(batches):
        x = x.clone().requires_grad_()
        y = module(x)
        layer.zero_grad()
        (y * weights).mean().backward()
        assert x.grad is not None
        assert y.dtype == x.dtype
        found |= {f"output {index}": y.detach(), f"input's gradient {index}": x.grad}
        grads = {f"{k}'s gradient {index}": p.grad.clone() for k, p in layer.named_parameters()}
        found |= grads
    return {**found, **layer.state_dict()}


def norms_of_rank(fabric: Any, rank: int) -> dict[str, dict[str, Tensor]]:
    results = {}
    for name in NORMS:
        layer = norm_layer(name)
        synchronize_batch_norm(layer)
        module = fabric.setup(layer)
        batches = [(share(x, rank), share(w, rank)) for x, w in norm_batches(name)]
        with synchronizing():
            found = norm_steps(layer, module, batches)
        with torch.no_grad():
            for key in found:
                if key.startswith("output"):
                    found[key] = gather_rows(found[key])
                elif key.startswith("input"):  # of the mean over ranks, as DDP has it
                    found[key] = gather_rows(found[key]) / RANKS
        results[name] = found
    return results


@pytest.mark.parametrize("name", NORMS)
def test_synchronized_bn_is_bn_of_the_whole_batch(name: str, two: dict[str, Any]) -> None:
    norms = two["norms"]
    layer = norm_layer(name)
    expected = norm_steps(layer, layer, norm_batches(name))
    tolerance = NORMS[name][-1]
    assert set(norms[name]) == set(expected)
    for key, value in expected.items():
        assert relative(norms[name][key], value) <= tolerance, key


def test_synchronizing_a_module_keeps_everything_else() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(16))
    before, kinds = copy.deepcopy(module), [type(part) for part in module]
    synchronize_batch_norm(module)
    assert all(isinstance(part, kind) for part, kind in zip(module, kinds, strict=True))
    assert list(module.state_dict()) == list(before.state_dict())
    copied = copy.deepcopy(module)
    copied.load_state_dict(before.state_dict())
    assert [type(part) for part in copied] == [type(part) for part in module]
    x = drawn(5, 3, 4, 4, seed=0, dtype=torch.float32)
    with synchronizing():  # without a group there is nothing to do
        assert torch.equal(copied(x), before(x))
    assert torch.equal(copied.eval()(x), before.eval()(x))
    for name, value in before.state_dict().items():
        assert torch.equal(copied.state_dict()[name], value)


def lonely(rank: int) -> bool:
    """Whether rank 0 may run a synchronised layer while rank 1 does not."""
    layer, plain = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    synchronize_batch_norm(layer)
    same = True
    if rank == 0:
        x = drawn(4, 3, seed=0, dtype=torch.float32)
        same = torch.equal(layer(x), plain(x))
        with synchronizing():
            same &= torch.equal(layer.eval()(x), plain.eval()(x))
    return not any_rank(not same)


def test_outside_of_synchronizing_a_rank_is_alone(two: dict[str, Any]) -> None:
    assert two["lonely"]


# -- a step ----------------------------------------------------------------------------------------

NETWORKS = {
    "plain": ([4, 6], False),
    "wider": ([4, 9], False),
    "recomputed": ([4, 6], True),
}


def learner(name: str) -> Learner:
    widths, checkpointing = NETWORKS[name]
    blocks = tuple(
        Block(channels=width, pool=True, residual=i > 0) for i, width in enumerate(widths)
    )
    generator = torch.Generator().manual_seed(7)
    backbone = EvolvableCNN(Architecture(blocks=blocks, resolution=8), generator=generator)
    backbone.gradient_checkpointing = checkpointing
    head = ProjectionHead(backbone.architecture.features, 8, 5, generator=generator)
    return Learner(backbone, head).double()


def training(
    network: Learner, module: nn.Module, optimizer: Any, view1: Tensor, view2: Tensor
) -> dict[str, Tensor]:
    """Two steps; the gradients of both and all that is left in the network."""
    found = {}
    for index in range(2):
        optimizer.zero_grad()
        with synchronizing():
            _, z = module(torch.cat((view1, view2)))
            z1, z2 = z.chunk(2)
            loss = nt_xent(gather_rows(z1), gather_rows(z2), 0.5)
            loss.backward()
        found[f"loss {index}"] = loss.detach()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None
            found[f"{name}'s gradient {index}"] = parameter.grad.clone()
        optimizer.step()
    return {**found, **network.state_dict()}


def views() -> tuple[Tensor, Tensor]:
    return drawn(6, 3, 8, 8, seed=11), drawn(6, 3, 8, 8, seed=12)


def steps_of_rank(fabric: Any, rank: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name in NETWORKS:  # one fabric for all of them, as after a mutation
        network = learner(name)
        synchronize_batch_norm(network)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        module, optimizer = fabric.setup(network, optimizer)
        view1, view2 = (share(view, rank) for view in views())
        results[name] = training(network, module, optimizer, view1, view2)
        state = network.state_dict()
        others = same_everywhere(state)
        results[f"{name} unequal"] = any_rank(
            not all(torch.equal(state[key], others[key]) for key in state)
        )
    return results


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_two_processes_is_the_step_of_one(name: str, two: dict[str, Any]) -> None:
    steps = two["steps"]
    network = learner(name)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    expected = training(network, network, optimizer, *views())
    assert set(steps[name]) == set(expected)
    for key, value in expected.items():
        # The head's bias before BN has no gradient but rounding.
        assert torch.allclose(steps[name][key], value, rtol=1e-9, atol=1e-13), key
    assert not steps[f"{name} unequal"]


# -- methods ---------------------------------------------------------------------------------------

SMALL = ["ssl.projection_hidden=8", "ssl.projection_dim=5"]
METHOD_OPTIONS = {
    "simclr": SMALL,
    "byol": SMALL,
    "prototype_pairs": [],
    "barlow_twins": SMALL,
    "dino": [*SMALL, "ssl.prototypes=6", "ssl.local_views=1", "ssl.local_size=0.5"],
}


def method_step(name: str, fabric: Any = None, rank: int = 0) -> dict[str, Tensor]:
    """Loss, gradients, statistics and memory of a step on a batch, or on one rank's share of it."""
    ssl = load([f"ssl={name}", *METHOD_OPTIONS[name]]).ssl
    method, memory = METHODS[name], {}
    networks = []
    for seed in (7, 8):
        generator = torch.Generator().manual_seed(seed)
        backbone = EvolvableCNN(Architecture.seed([4, 6], resolution=8), generator=generator)
        networks.append(make_learner(backbone, ssl, generator).double())
    network, other = networks
    teacher = make_teacher(other.backbone)
    head = make_teacher(other.head) if method.has_target else None
    memory = {key: drawn(len(value), seed=9) for key, value in method.memory(ssl).items()}
    views = [
        drawn(crops.count, 6, 3, *[round(8 * crops.size)] * 2, seed=11 + index)
        for index, crops in enumerate(method.crops(ssl))
    ]
    module: Any = network
    if fabric is not None:
        for part in (network, teacher, head):
            if part is not None:
                synchronize_batch_norm(part)
        module = fabric.setup(network)
        views = [view.chunk(RANKS, dim=1)[rank] for view in views]
    teaching = Teaching(teacher, head, memory, tracks=True)
    with synchronizing():
        losses = method.loss(module, teaching, views, ssl, gather_rows)
        losses.total.backward()
    assert losses.distillation is not None
    found = {"loss": losses.total.detach(), "gap": losses.distillation.detach()}
    found = {key: gather_rows(value[None]).mean() for key, value in found.items()}
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        found[f"{key}'s gradient"] = parameter.grad.clone()
    theirs = {f"teacher's {key}": value for key, value in teacher.state_dict().items()}
    assert theirs["teacher's blocks.0.norm.num_batches_tracked"] == 1
    return {**found, **network.state_dict(), **theirs, **(losses.memory or {})}


def methods_of_rank(fabric: Any, rank: int) -> dict[str, dict[str, Tensor]]:
    return {name: method_step(name, fabric, rank) for name in METHOD_OPTIONS}


@pytest.mark.parametrize("name", METHOD_OPTIONS)
def test_a_step_of_every_method_is_the_step_of_one_process(name: str, two: dict[str, Any]) -> None:
    expected = method_step(name)
    found = two["methods"][name]
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=1e-8, atol=1e-12), key


# -- values ----------------------------------------------------------------------------------------


def values_of_rank(rank: int) -> dict[str, Any]:
    x = torch.full((2, 3), float(rank), requires_grad=True)
    rows = gather_rows(x)
    (rows * torch.arange(12.0).view(4, 3) * (rank + 1)).sum().backward()
    half = torch.full((1, 2), rank + 0.5, dtype=torch.bfloat16)
    return {
        "rows": rows.detach(),
        "gradients": gather_rows(x.grad),  # type: ignore[arg-type]
        "half": gather_rows(half),
        "integers": gather_rows(torch.tensor([rank])),
        "ranks": ranks(),
        "said": same_everywhere({"said by": rank}) == {"said by": 0},
        "any": (any_rank(rank == 1), any_rank(rank == 0), any_rank(False)),
        "threads": torch.get_num_threads(),
    }


def test_values_are_exchanged(two: dict[str, Any]) -> None:
    found = two["values"]
    assert torch.equal(found["rows"], torch.tensor([0.0, 0, 1, 1])[:, None].expand(4, 3))
    assert torch.equal(found["gradients"], torch.arange(12.0).view(4, 3) * (1 + 2))
    assert found["half"].dtype == torch.bfloat16
    assert found["half"].tolist() == [[0.5, 0.5], [1.5, 1.5]]
    assert found["integers"].tolist() == [0, 1]
    assert found["ranks"] == RANKS
    assert found["said"]
    assert found["any"] == (True, True, False)
    assert found["threads"] == THREADS // RANKS


def test_one_process_exchanges_with_nobody() -> None:
    x = torch.ones(2, 3)
    with workers(values_of_rank, devices=1):
        assert gather_rows(x) is x
        assert same_everywhere(x) is x
        assert any_rank(True)
        assert not any_rank(False)
        assert build_fabric("cpu", 1, "32-true").world_size == 1
    assert not dist.is_initialized()


# -- processes -------------------------------------------------------------------------------------


def fail(rank: int, error: BaseException) -> None:
    any_rank(False)
    if rank == 1:
        raise error
    any_rank(False)


def meet_the_end(rank: int) -> None:
    any_rank(False)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.monotonic()
    try:
        any_rank(False)
    finally:
        assert time.monotonic() - began < 5


def wait(rank: int, file: Path) -> None:
    if rank == 0:
        until(lambda: written(file))
        raise ZeroDivisionError
    file.write_text(str(os.getpid()))
    time.sleep(600)


class Unloadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return (_mistake, ())


def _mistake() -> None:
    raise UserError("hardware.devices=2: not on this machine")


def written(file: Path) -> int | None:
    """The number in `file`, as soon as it is there."""
    return int(file.read_text() or 0) or None if file.exists() else None


def gone(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        return False
    return True


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_error_of_a_worker_is_heard() -> None:
    with left_as_it_was(), pytest.raises(WorkerError) as caught:
        together(fail, KeyError("the shelf"))
    assert str(caught.value).startswith("rank 1 failed: KeyError: 'the shelf'\nTraceback")
    assert "in fail\n    raise error" in str(caught.value)


def test_the_end_of_a_worker_is_noticed() -> None:
    said = r"rank 1 failed: .* exit code -9 \(killed"
    with left_as_it_was(), pytest.raises(WorkerError, match=said):
        together(meet_the_end)


def test_a_worker_that_cannot_start_is_heard() -> None:
    with (
        left_as_it_was(),
        pytest.raises(UserError, match=r"^hardware\.devices=2: not on this machine$"),
        workers(wait, Unloadable(), devices=RANKS),
    ):
        raise AssertionError("the body must not run")


def test_an_error_of_rank_0_is_its_own_and_ends_the_workers(tmp_path: Path) -> None:
    file = tmp_path / "process"
    with left_as_it_was(), pytest.raises(ZeroDivisionError):
        together(wait, file)
    assert gone(written(file) or 0)


PROGRAM = """
import os, time
from sseg_nase.training.distributed import workers

def wait(rank):
    with open(f"process{rank}", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    with workers(wait, devices=2):
        wait(0)
"""


def test_workers_die_with_rank_0(tmp_path: Path) -> None:
    program, file = tmp_path / "program.py", tmp_path / "process1"
    program.write_text(PROGRAM)
    process = subprocess.Popen([sys.executable, program], cwd=tmp_path)
    try:
        until(lambda: written(file) or process.poll() is not None)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    until(lambda: gone(written(file) or 0))
