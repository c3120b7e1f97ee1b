"""Can gradients tell where to grow? `python benchmarks/growth_score.py DATA OUT`, CIFAR-FS in DATA.

One network with two convolutions per stage learns the base classes. Then at each of its eight
blocks another one is added that changes nothing yet (`grow`), and each of the nine networks, the
unchanged one included, is trained further on the same batches. What a position gained is the fall
of the cross-entropy of held images below the unchanged network's. It is set against scores taken
before, from gradients alone: with the added convolution W at 0 and no norm behind it, n_k is W's
gradient on batch k, and

    score = (‖Σ ñ_k‖² − Σ ‖ñ_k‖²) / (K (K − 1)),  ñ_k = n_k / sqrt(B · Var(n) + λ),

the variance being of other batches: the squared gradient in units of its noise, without the bias
that noise adds to a square, with the jackknife's standard error. `params` is what any score has to
beat: a larger block is the better one. Written to OUT/growth_score.json and .md.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase import grow, load_config
from sseg_nase.evolution.functional import Evolved
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.evolvable import EvolvableCNN
from sseg_nase.stages import labelled

WIDTHS, BLOCKS = (16, 40, 80, 160), 2
BATCH, RATE, GAMMA, DECAY = 128, 1e-3, 5.0, 0.05
HELD = 0.1  # of the images of every class
DAMPING = 1e-3  # λ, in units of the mean variance


def data_of(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images `[n, 3, 32, 32]` in [-1, 1] and labels that are trained on, and those held out."""
    config = load_config(
        [
            "dataset=cifar_fs",
            "dataset.image_size=32",
            "finetune=linear",
            f"paths.data_dir='{folder}'",
        ]
    )
    store = labelled(config)
    images = torch.from_numpy(np.array(store.images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    labels = torch.from_numpy(np.array(store.labels))
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        of_class = (labels == label).nonzero()[:, 0]
        held[of_class[: round(HELD * len(of_class))]] = True
    return images[~held], labels[~held], images[held], labels[held]


def batches(
    images: Tensor, labels: Tensor, epochs: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of all images in another order every epoch, shifted by up to 4 pixels and flipped."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for rows in order[: len(order) // BATCH * BATCH].view(-1, BATCH):
            x = images[rows]
            flipped = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(flipped[:, None, None, None], x.flip(3), x)
            dy, dx = torch.randint(9, (2,), generator=generator).tolist()
            x = F.pad(x, (4, 4, 4, 4), mode="reflect")[:, :, dy : dy + 32, dx : dx + 32]
            yield x.contiguous(memory_format=torch.channels_last), labels[rows]


def added(
    network: EvolvableCNN, position: int, seed: int, optimizer: torch.optim.Optimizer | None = None
) -> Evolved:
    """One block more at `position`, before the pooling where the block before it pools."""
    pools = network.architecture.blocks[position - 1].pool
    return grow(network, position=position, before_pool=pools, seed=seed, optimizer=optimizer)


def optimizer_of(network: nn.Module) -> torch.optim.AdamW:
    """The norms learn faster and do not decay, so that a γ of 0 can leave it."""
    weights = [p for p in network.parameters() if p.ndim > 1]
    norms = [p for p in network.parameters() if p.ndim == 1]
    return torch.optim.AdamW(
        [
            {"params": weights, "lr": RATE, "weight_decay": DECAY},
            {"params": norms, "lr": GAMMA * RATE, "weight_decay": 0.0},
        ]
    )


def train(
    network: EvolvableCNN,
    head: nn.Linear,
    optimizers: Sequence[torch.optim.Optimizer],
    stream: Iterator[tuple[Tensor, Tensor]],
) -> None:
    """Cross-entropy at a constant learning rate."""
    network.train()
    for x, y in stream:
        loss = F.cross_entropy(head(network(x)), y)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in optimizers:
            optimizer.step()


@torch.no_grad()
def held_losses(network: EvolvableCNN, head: nn.Linear, images: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy `[n]` of every held image, in eval mode."""
    network.eval()
    parts = zip(images.split(512), labels.split(512), strict=True)
    return torch.cat([F.cross_entropy(head(network(x)), y, reduction="none") for x, y in parts])


def added_gradients(
    network: EvolvableCNN, head: nn.Linear, position: int, stream: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """`[K, weights]`: of every batch the gradient of the added convolution, where it is 0."""
    wider = added(network, position, 0).network.train()
    block: Any = wider.blocks[position]
    block.norm = nn.Identity()
    nn.init.zeros_(block.conv.weight)
    rows = []
    for x, y in stream:
        loss = F.cross_entropy(head(wider(x)), y)
        (gradient,) = torch.autograd.grad(loss, block.conv.weight)
        rows.append(gradient.flatten())
    return torch.stack(rows)


def score(gradients: Tensor, others: Tensor) -> tuple[float, float]:
    """The score of the module's docstring and its jackknife standard error; both `[K, weights]`."""
    variance = BATCH * others.var(dim=0)
    n = (gradients / (variance + DAMPING * variance.mean()).sqrt()).double()
    count, total, squares = len(n), n.sum(dim=0), n.square().sum(dim=1)

    def unbiased(vector: Tensor, square: Tensor, k: int) -> Tensor:
        return (vector.square().sum(dim=-1) - square) / (k * (k - 1))

    without = unbiased(total - n, squares.sum() - squares, count - 1)
    spread = (count - 1) / count * (without - without.mean()).square().sum()
    return float(unbiased(total, squares.sum(), count)), float(spread.sqrt())


def one_seed(seed: int, data: Sequence[Tensor], given: argparse.Namespace) -> list[dict[str, Any]]:
    """A row per position."""
    images, labels, held_images, held_labels = data
    torch.manual_seed(seed)
    architecture = Architecture.seed(WIDTHS, resolution=32, activation="leaky_relu")
    network = EvolvableCNN(architecture)
    for _ in range(BLOCKS - 1):
        for position in range(len(WIDTHS), 0, -1):
            network = added(network, position, seed).network
    network = network.to(memory_format=torch.channels_last)
    head = nn.Linear(WIDTHS[-1], int(labels.max()) + 1)
    optimizers = (optimizer_of(network), torch.optim.AdamW(head.parameters(), lr=RATE))
    train(network, head, optimizers, batches(images, labels, given.before, seed))

    network.train()
    taken = list(itertools.islice(batches(images, labels, 99, 1000 + seed), 2 * given.batches))
    rows: list[dict[str, Any]] = []
    arms: list[int | None] = [None, *range(1, len(network.blocks) + 1)]
    for position in arms:
        began = time.perf_counter()
        row: dict[str, Any] = {"seed": seed, "position": position}
        if position is not None:
            found = added_gradients(network, head, position, taken)
            ours, others = found[: given.batches], found[given.batches :]
            row["score"], row["error"] = score(ours, others)
            row["squared_mean"] = float(found.mean(dim=0).square().sum())
            row["params"] = found.shape[1]
            row["resolution"] = 32 >> sum(
                b.pool for b in network.architecture.blocks[: position - 1]
            )
        own_head = copy.deepcopy(head)
        on_head = torch.optim.AdamW(own_head.parameters(), lr=RATE)
        on_head.load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
        if position is None:
            trained = copy.deepcopy(network)
            on_network = optimizer_of(trained)
            on_network.load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        else:
            grown = added(network, position, seed, optimizers[0])
            assert grown.optimizer is not None
            trained, on_network = grown.network, grown.optimizer  # type: ignore[assignment]
        train(
            trained,
            own_head,
            (on_network, on_head),
            batches(images, labels, given.after, 50 + seed),
        )
        losses = held_losses(trained, own_head, held_images, held_labels)
        if position is None:
            unchanged = losses
        else:
            gain = unchanged - losses
            row["gain"] = float(gain.mean())
            row["gain_error"] = float(gain.std() / len(gain) ** 0.5)
            rows.append(row)
        print(json.dumps(row), f"{time.perf_counter() - began:.0f} s", flush=True)
    return rows


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that has cifar_fs")
    parser.add_argument("out", type=Path, help="the folder of the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--before", type=int, default=10, help="epochs before growth (10)")
    parser.add_argument("--after", type=int, default=2, help="epochs after it (2)")
    parser.add_argument("--batches", type=int, default=16, help="that a score is made of (16)")
    parser.add_argument("--images", type=int, help="train on so many (all)")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    data = data_of(given.data)
    if given.images:
        chosen = torch.randperm(len(data[1]), generator=torch.Generator().manual_seed(0))
        data = (data[0][chosen[: given.images]], data[1][chosen[: given.images]], *data[2:])
    rows = [row for seed in given.seeds for row in one_seed(seed, data, given)]
    lines = ["| seed | score | squared mean | params |", "|---|---|---|---|"]
    for seed in given.seeds:
        own = [row for row in rows if row["seed"] == seed]
        gains = [row["gain"] for row in own]
        cells = [
            spearmanr([r[k] for r in own], gains)[0] for k in ("score", "squared_mean", "params")
        ]
        lines.append(f"| {seed} | " + " | ".join(f"{cell:+.2f}" for cell in cells) + " |")
    positions = sorted({row["position"] for row in rows})

    def mean(key: str, position: int) -> float:
        return float(np.mean([row[key] for row in rows if row["position"] == position]))

    gains = [mean("gain", p) for p in positions]
    cells = [
        spearmanr([mean(k, p) for p in positions], gains)[0]
        for k in ("score", "squared_mean", "params")
    ]
    lines.append("| means | " + " | ".join(f"{cell:+.2f}" for cell in cells) + " |")
    lines += [
        "",
        "| position | resolution | gain, nats | score | params |",
        "|---|---|---|---|---|",
    ]
    for p in positions:
        lines.append(
            f"| {p} | {mean('resolution', p):.0f} | {mean('gain', p):+.4f} | "
            f"{mean('score', p):.4g} | {mean('params', p):,.0f} |"
        )
    settings = {key: value for key, value in vars(given).items() if key not in ("data", "out")}
    (given.out / "growth_score.json").write_text(
        json.dumps({"settings": settings, "rows": rows}, indent=1)
    )
    (given.out / "growth_score.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
