"""The helper that the tests of the CUDA paths stand on: what it refuses, allows and counts."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sseg_nase.training.distributed import build_fabric
from tests.support.fake_cuda import CUDA, Fake, MixedDevicesError, OnCuda, fake_cuda


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_cuda() as found:
        yield found


def there(*shape: int) -> Tensor:
    return torch.ones(shape, device="cuda")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


REFUSED: dict[str, Callable[[], object]] = {
    "a sum": lambda: there(3) + torch.ones(3),
    "a product": lambda: there(2, 2) @ torch.ones(2, 2),
    "a layer": lambda: nn.Linear(2, 2)(there(1, 2)),
    "weights": lambda: nn.Linear(2, 2).cuda()(torch.ones(1, 2)),
    "torch.where": lambda: torch.where(there(3) > 0, torch.ones(3), 0.0),
    "torch.stack": lambda: torch.stack((there(), torch.ones(()))),
    "torch.empty": lambda: torch.empty(3, device="cuda").copy_(there(3)) * torch.empty(3),
    "out=": lambda: torch.add(there(3), there(3), out=torch.empty(3)),
    "in place, from CUDA": lambda: torch.ones(3).add_(there(3)),
    "in place, from the CPU": lambda: there(3).add_(torch.ones(3)),
    "in place, into a number": lambda: torch.ones(()).add_(there()),
    "an index": lambda: torch.ones(3)[torch.zeros(2, dtype=torch.long, device="cuda")],
    "a mask": lambda: torch.ones(3)[there(3) > 0],
    "index_select": lambda: there(3).index_select(0, torch.zeros(2, dtype=torch.long)),
    "gather": lambda: there(3).gather(0, torch.zeros(2, dtype=torch.long)),
    "index_copy_": lambda: there(3).index_copy_(0, torch.zeros(1).long().cuda(), torch.ones(1)),
    "values": lambda: there(3).__setitem__(torch.tensor([0, 1]), torch.ones(2)),
    "a target": lambda: F.cross_entropy(there(2, 3), torch.zeros(2, dtype=torch.long)),
    "torch.equal": lambda: torch.equal(there(3), torch.ones(3)),
    "foreach": lambda: torch._foreach_add_([there(3)], [torch.ones(3)]),
    "a generator of a factory": lambda: torch.rand(3, device="cuda", generator=generator()),
    "a generator of randperm": lambda: torch.randperm(3, device="cuda", generator=generator()),
    "a generator in place": lambda: there(3).normal_(generator=generator()),
    "a generator of nn.init": lambda: nn.init.normal_(there(2, 2), generator=generator()),
}  # fmt: skip
NUMPY: dict[str, Callable[[], object]] = {
    "numpy()": lambda: there(3).numpy(),
    "np.asarray": lambda: np.asarray(there(3)),
    "numpy() of a part": lambda: there(3)[1:].detach().numpy(),
}


@pytest.mark.parametrize("mistake", REFUSED.values(), ids=REFUSED)
def test_a_mistake_is_refused(fake: Fake, mistake: Callable[[], object]) -> None:
    with pytest.raises(MixedDevicesError):
        mistake()


@pytest.mark.parametrize("mistake", NUMPY.values(), ids=NUMPY)
def test_numpy_gets_no_cuda_tensor(fake: Fake, mistake: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="cuda:0"):
        mistake()


def test_a_fused_optimizer_wants_all_of_its_state_there(fake: Fake) -> None:
    layer = nn.Linear(2, 2).cuda()
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)
    layer(there(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state[layer.weight]
    assert state["step"].is_cuda
    state["step"] = state["step"].cpu()
    with pytest.raises(MixedDevicesError):
        optimizer.step()


ALLOWED: dict[str, tuple[Callable[[], Tensor], object]] = {
    "a number of the CPU": (lambda: there(2) * torch.tensor(3.0), [3, 3]),
    "a comparison with one": (lambda: torch.where(there(2) > 0, torch.tensor(5.0), 0.0), [5, 5]),
    "indices of the CPU": (lambda: torch.arange(3, device="cuda")[torch.tensor([2, 0])], [2, 0]),
    "a copy into": (lambda: torch.zeros(2, device="cuda").copy_(torch.ones(2)), [1, 1]),
    "from NumPy": (lambda: torch.from_numpy(np.ones(2)).to("cuda"), [1, 1]),
    "of its kind": (lambda: torch.zeros_like(there(2)), [0, 0]),
    "new_zeros": (lambda: there(2).new_zeros(2), [0, 0]),
    "torch.tensor": (lambda: torch.tensor([1.5, 2], device="cuda"), [1.5, 2]),
    "another type": (lambda: there(2).double().half().to(torch.int64), [1, 1]),
    "as another": (lambda: torch.ones(2).to(there(1)), [1, 1]),
}


@pytest.mark.parametrize(("work", "expected"), ALLOWED.values(), ids=ALLOWED)
def test_what_cuda_allows_gives_what_a_cpu_gives(
    fake: Fake, work: Callable[[], Tensor], expected: object
) -> None:
    found = work()
    assert found.device == CUDA
    assert found.is_cuda
    assert not found.is_cpu
    assert found.tolist() == expected
    back = found.cpu()
    assert type(back) is Tensor
    assert back.device.type == "cpu"
    assert back.tolist() == expected


def test_a_part_shares_its_memory(fake: Fake) -> None:
    whole = torch.zeros(2, 3, device="cuda")
    whole[:, 1] = torch.ones(2)
    part = whole[0]
    part += 1
    assert whole.tolist() == [[1, 2, 1], [0, 1, 0]]
    assert part.is_cuda


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())


@pytest.mark.parametrize("saving", [False, True])
def test_it_trains_as_a_cpu_does(saving: bool) -> None:
    def trained(device: str) -> list[Tensor]:
        layers = network().to(device)
        optimizer = torch.optim.AdamW(layers.parameters(), lr=0.1, fused=True)
        for seed in range(3):
            images = torch.randn(2, 3, 5, 5, generator=generator().manual_seed(seed)).to(device)
            found = checkpoint(layers, images, use_reentrant=False) if saving else layers(images)
            found.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return [parameter.detach().cpu() for parameter in layers.parameters()]

    here = trained("cpu")
    with fake_cuda():
        inside = trained("cuda")
    assert all(map(torch.equal, here, inside))


def test_gradients_of_gradients_are_there(fake: Fake) -> None:
    x = there(3).mul(2).detach().requires_grad_(True)
    (first,) = torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert second.is_cuda
    assert second.tolist() == [12, 12, 12]


def test_a_module_moves_with_its_gradients_and_shared_weights(fake: Fake) -> None:
    layer = nn.Linear(2, 2)
    both = nn.Sequential(layer, nn.Sequential(layer))
    both(torch.ones(1, 2)).sum().backward()
    both.to("cuda")
    assert both[0].weight is both[1][0].weight
    assert both[0].weight.grad.is_cuda
    copied = copy.deepcopy(both)
    assert copied[0].weight is copied[1][0].weight
    assert copied[0].weight.is_cuda
    before = both[0].weight
    assert nn.Linear(2, 2).to(device=CUDA, dtype=torch.float64).weight.is_cuda
    assert both.to("cuda")[0].weight is before
    assert not both.cpu()[0].weight.is_cuda


WAITS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "item": (lambda: there().item(), ["read"]),
    "float": (lambda: float(there()), ["read"]),
    "bool": (lambda: bool((there(3) > 0).all()), ["read"]),
    "tolist": (lambda: there(3).tolist(), ["read"]),
    "cpu": (lambda: there(3).cpu(), ["read"]),
    "equal": (lambda: torch.equal(there(3), there(3)), ["read"]),
    "a mask": (lambda: there(3)[there(3) > 0], ["size"]),
    "nonzero": (lambda: there(3).nonzero(), ["size"]),
    "masked_select": (lambda: there(3).masked_select(there(3) > 0), ["size"]),
    "values by a mask": (lambda: there(3).__setitem__(there(3) > 0, there(3)), ["size"]),
    "a number by a mask": (lambda: there(3).__setitem__(there(3) > 0, 1.0), []),
    "tensor": (lambda: torch.tensor([1.0], device="cuda"), ["send"]),
    "new_tensor": (lambda: there(3).new_tensor([1.0]), ["send"]),
    "to": (lambda: torch.ones(3).to("cuda"), ["send"]),
    "to, asynchronously": (lambda: torch.ones(3).to("cuda", non_blocking=True), ["send"]),
    "page-locked": (lambda: torch.ones(3).pin_memory().to("cuda"), ["send"]),
    "both": (lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True), []),
    "both, a part": (lambda: torch.ones(3).pin_memory()[1:].to("cuda", non_blocking=True), []),
    "pin_memory=": (
        lambda: there(3).copy_(torch.zeros(3, pin_memory=True), non_blocking=True), [],
    ),
    "copy_": (lambda: there(3).copy_(torch.zeros(3)), ["send"]),
    "CPU indices": (lambda: there(3)[torch.tensor([0])], ["send"]),
    "a factory": (lambda: torch.arange(3, device="cuda") + 1, []),
    "on the CPU": (lambda: torch.ones(3)[torch.ones(3) > 0].tolist(), []),
    "synchronize": (lambda: torch.cuda.synchronize(), ["synchronize"]),
}  # fmt: skip


@pytest.mark.parametrize(("work", "kinds"), WAITS.values(), ids=WAITS)
def test_waits_are_counted(fake: Fake, work: Callable[[], object], kinds: list[str]) -> None:
    work()
    assert [kind for place in fake.waits.elements() for kind in place.split()[:1]] == kinds


def test_half_precision_is_that_of_the_cpu(fake: Fake) -> None:
    layer = nn.Linear(2, 2).cuda()
    with torch.autocast("cuda", torch.float16):
        assert layer(there(1, 2)).dtype == torch.float16
        with torch.autocast("cuda", enabled=False):
            assert layer(there(1, 2)).dtype == torch.float32


def test_a_file_goes_where_it_is_told() -> None:
    file = io.BytesIO()
    with fake_cuda():
        torch.save({"x": there(2)}, file)
        for told, kind in ((None, OnCuda), ("cuda", OnCuda), ("cpu", Tensor)):
            file.seek(0)
            assert type(torch.load(file, map_location=told, weights_only=True)["x"]) is kind
    file.seek(0)
    assert torch.load(file, map_location="cpu", weights_only=True)["x"].tolist() == [1, 1]


def test_fabric_says_that_it_is_on_cuda(fake: Fake) -> None:
    fabric = build_fabric("cuda", 1, "16-mixed")
    assert fabric.device == CUDA
    assert fabric.strategy.precision.scaler.is_enabled()
    assert build_fabric("cpu", 1, "32-true").device.type == "cpu"
    layer = nn.Linear(2, 2)
    model, _ = fabric.setup(layer, torch.optim.SGD(layer.parameters()))
    assert next(model.parameters()).is_cuda


def test_all_is_as_before_at_the_end() -> None:
    names = ("autocast", "inference_mode", "load", "is_autocast_enabled")
    before = [getattr(torch, name) for name in names] + list(vars(torch.cuda).values())
    found = torch.cuda.is_available()
    with suppress(ZeroDivisionError), fake_cuda():
        assert torch.cuda.get_device_name() != ""
        raise ZeroDivisionError
    assert torch.cuda.is_available() == found
    after = [getattr(torch, name) for name in names] + list(vars(torch.cuda).values())
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert type(torch.ones(3)) is Tensor
