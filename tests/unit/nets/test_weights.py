"""Weights of others: all of them, as torchvision would use them, or a clear refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sseg_nase.data.views import normalize
from sseg_nase.errors import UserError
from sseg_nase.nets.backbone import Backbone
from sseg_nase.nets.building import build
from sseg_nase.nets.families.resnet.network import ResNetArchitecture
from sseg_nase.nets.weights import load_weights

ARCHITECTURE = ResNetArchitecture("resnet18", 40, inputs="imagenet")


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """torchvision's ResNet-18 with weights and statistics of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = torchvision.models.resnet18(weights=None).train()
        network(torch.randn(4, 3, 40, 40))
    return network.eval()


def ours(architecture: ResNetArchitecture = ARCHITECTURE) -> Backbone:
    return build(architecture, generator=torch.Generator().manual_seed(0)).eval()


def saved(path: Path, value: Any) -> str:
    torch.save(value, path)
    return str(path)


def test_a_file_of_torchvision_gives_what_torchvision_gives(
    theirs: nn.Module, tmp_path: Path
) -> None:
    network = ours()
    said = load_weights(network, saved(tmp_path / "resnet18.pth", theirs.state_dict()))
    assert "120 tensors" in said
    assert "fc.bias, fc.weight" in said
    images = torch.randint(0, 256, (3, 3, 40, 40), generator=torch.Generator().manual_seed(1))
    images = images.to(torch.uint8)
    standard = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    features: list[Tensor] = []
    hook = theirs.avgpool.register_forward_hook(lambda *call: features.append(call[-1].flatten(1)))
    with torch.no_grad():
        theirs(standard(images / 255))
        found = network(normalize(images))
    hook.remove()
    torch.testing.assert_close(found, features[0], rtol=1e-4, atol=1e-4)


def test_an_old_file_without_counters_is_whole(theirs: nn.Module, tmp_path: Path) -> None:
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    network = ours()
    load_weights(network, saved(tmp_path / "old.pth", state))
    assert torch.equal(network.state_dict()["body.layer4.1.bn2.bias"], state["layer4.1.bn2.bias"])


def test_grey_images_meet_the_first_layer_summed_over_the_colours(
    theirs: nn.Module, tmp_path: Path
) -> None:
    """As the network of three channels has a grey image in each of them."""
    weights = saved(tmp_path / "resnet18.pth", theirs.state_dict())
    coloured, grey = (
        ours(ResNetArchitecture("resnet18", 40, inputs="centred", in_channels=channels))
        for channels in (3, 1)
    )
    assert "conv1.weight is summed" not in load_weights(coloured, weights)
    assert "for grey images conv1.weight is summed over its three" in load_weights(grey, weights)
    images = torch.rand(3, 1, 40, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        expected = coloured(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey(images), expected, rtol=1e-4, atol=1e-4)


def test_only_three_channels_are_summed_for_grey(theirs: nn.Module, tmp_path: Path) -> None:
    state = {**theirs.state_dict(), "conv1.weight": torch.ones(64, 4, 7, 7)}
    weights = saved(tmp_path / "four.pth", state)
    with pytest.raises(UserError, match=r"conv1\.weight is \[64, 4, 7, 7\] instead of"):
        load_weights(ours(ResNetArchitecture("resnet18", 40, in_channels=1)), weights)


def without(state: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key not in names}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: without(s, "conv1.weight"), ["1 missing (conv1.weight)"]),
        (lambda s: {**s, "extra": torch.ones(1)}, ["1 unexpected (extra)"]),
        (
            lambda s: {**s, "conv1.weight": torch.ones(64, 1, 7, 7)},
            ["1 of another shape (conv1.weight is [64, 1, 7, 7] instead of [64, 3, 7, 7])"],
        ),
        (
            lambda s: torchvision.models.resnet34(weights=None).state_dict(),
            ["96 unexpected", "and 92 more", "does not fit backbone=resnet18"],
        ),
        (lambda s: {f"module.{k}": v for k, v in s.items()}, ["missing", "unexpected"]),
        (lambda s: {"state_dict": s}, ["not a state dict"]),
        (lambda s: [1, 2], ["not a state dict"]),
    ],
)
def test_a_file_that_does_not_fit_is_refused_whole(
    change: Callable[[dict[str, Tensor]], Any], said: list[str], theirs: nn.Module, tmp_path: Path
) -> None:
    network = ours()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    weights = saved(tmp_path / "wrong.pth", change(theirs.state_dict()))
    with pytest.raises(UserError) as refused:
        load_weights(network, weights)
    for part in [f"backbone.weights={weights}", *said]:
        assert part in str(refused.value)
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_what_is_no_file_of_torch_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="no such file" if content is None else "damaged"):
        load_weights(ours(), str(path))


def test_imagenet_is_taken_from_the_cache_and_never_downloaded(
    theirs: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    with pytest.raises(UserError) as refused:
        load_weights(ours(), "imagenet")
    for part in (str(file), "https://download.pytorch.org/models/resnet18-f37072fd.pth"):
        assert part in str(refused.value)
    file.parent.mkdir(parents=True)
    assert "120 tensors" in load_weights(ours(), saved(file, theirs.state_dict()))
    assert str(file) in load_weights(ours(), "imagenet")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(
    bad: float, theirs: nn.Module, tmp_path: Path
) -> None:
    state = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    state["layer1.0.bn1.running_var"][0] = bad
    network = ours()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(UserError, match=r"not finite \(layer1\.0\.bn1\.running_var\)"):
        load_weights(network, saved(tmp_path / "resnet18.pth", state))
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())
