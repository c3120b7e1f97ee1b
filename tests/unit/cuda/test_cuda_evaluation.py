"""Fine-tuning, evaluation and measurements on CUDA, without a GPU: see `fake_cuda`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sseg_nase import stages
from sseg_nase.config.compose import load
from sseg_nase.config.groups.curriculum import SYNTHETIC_LEVELS
from sseg_nase.config.sequence import trained
from sseg_nase.data.curriculum.difficulty import difficulty
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.random import derive
from sseg_nase.errors import UserError
from sseg_nase.finetune.learner import EpisodeLearner, around
from sseg_nase.hardware.latency import latency_ms
from sseg_nase.nets.weights import _read
from sseg_nase.run import run
from sseg_nase.stages import evaluating
from sseg_nase.stages.setup import Reached
from sseg_nase.tracking.sink import Sink
from sseg_nase.training import checkpoint
from sseg_nase.training.distributed import build_fabric
from sseg_nase.training.interruption import Interrupted
from tests.support.cuda_paths import TINY, config_of
from tests.support.fake_cuda import CUDA, NAME, Fake, fake_cuda


def evaluated(method: str) -> list[str]:
    return [f"evaluation.method={method}", "evaluation.normalize=none"]


EVALUATED: dict[str, list[str]] = {
    "cosine": ["evaluation.top_k=[2]"],
    "euclidean": ["evaluation.metric=euclidean", "evaluation.normalize=none"],
    "unequal queries": ["evaluation.query_balance=dirichlet", "evaluation.method=sinkhorn"],
    **{
        method: [f"evaluation.method={method}"]
        for method in ("matching", "ridge", "logistic", "linear", "sinkhorn")
    },
    "relation": ["finetune=relation", *evaluated("relation"), "backbone.pooled_blocks=2"],
    "maml": [
        "finetune=maml",
        *evaluated("maml"),
        "evaluation.maml.steps=2",
        "evaluation.top_k=[2]",
    ],
    "r2d2": ["finetune=r2d2", "evaluation.method=ridge"],
}
QUICK = ["ssl=none", "evolution=none", "sparsity=none"]
ONE_EPOCH = ["finetune.epochs=1", "finetune.validation_episodes=4"]
EPISODES = ["finetune.episodes_per_epoch=4", "finetune.tasks_per_step=2", "finetune.queries=3"]


@pytest.fixture
def fake() -> Iterator[Fake]:
    with fake_cuda() as found:
        yield found


def fine_tuning(method: str) -> list[str]:
    own = {
        "relation": [*EPISODES, "backbone.pooled_blocks=2"],
        "maml": [*EPISODES, "finetune.inner_steps=2"],
        "linear": ["hardware.batch_size=128"],
    }
    return [*QUICK, f"finetune={method}", *ONE_EPOCH, *own.get(method, EPISODES)]


def learner(overrides: list[str]) -> Any:
    """The untrained network; with a head where one is asked for. The same on every device."""
    config = config_of(*QUICK, *overrides, *(EPISODES if "finetune=" in overrides[0] else []))
    backbone = stages.seed_backbone(config)
    if config.finetune.name == "none":
        return config, backbone
    generator = torch.Generator().manual_seed(derive(config.seed, "head"))
    ways = config.evaluation.ways
    assert ways is not None
    return config, around(backbone, config.finetune, ways, generator)


@pytest.mark.parametrize("overrides", EVALUATED.values(), ids=EVALUATED)
def test_every_method_gives_what_a_cpu_gives(overrides: list[str]) -> None:
    """But for half precision, in which MAML computes, and kernels of a real GPU."""
    exact = [*overrides, "hardware.precision=32-true"]
    results = {}
    with fake_cuda():
        config, network = learner(exact)
        tasks = stages.fewshot_tasks(config)
        results["cuda"] = stages.evaluate(tasks, Reached(network), CUDA).results
        assert next(network.parameters()).is_cuda
        _, network = learner(exact)
    results["cpu"] = stages.evaluate(tasks, Reached(network), torch.device("cpu")).results
    assert results["cuda"] == results["cpu"]
    assert len(results["cpu"]) == 2


def test_views_of_the_support(fake: Fake) -> None:
    config, network = learner(["evaluation.support_augmentations=2"])
    (evaluated, _) = stages.evaluate(stages.fewshot_tasks(config), Reached(network), CUDA).results
    assert "1s" in evaluated


def test_maml_in_half_precision(fake: Fake) -> None:
    config, network = learner([*EVALUATED["maml"], "hardware.precision=16-mixed"])
    assert stages.evaluate(stages.fewshot_tasks(config), Reached(network), CUDA).results


def test_few_looks_at_the_device(fake: Fake) -> None:
    """Every chunk of episodes, and of images, is asked for without a wait."""
    config, network = learner(["evaluation.memory_mb=0.05", "evaluation.batch_size=16"])
    tasks = stages.fewshot_tasks(config)
    network.to(CUDA)
    fake.waits.clear()
    few = stages.evaluate(tasks, Reached(network), CUDA)
    waits = fake.waits.total()
    config, network = learner(["evaluation.memory_mb=16", "evaluation.batch_size=1000"])
    network.to(CUDA)
    fake.waits.clear()
    many = stages.evaluate(stages.fewshot_tasks(config), Reached(network), CUDA)
    assert many.results == few.results
    assert fake.waits.total() == waits


# -- fine-tuning -----------------------------------------------------------------------------------


def tune(folder: Path, overrides: list[str], **more: Any) -> Reached:
    config = config_of(*overrides)
    return stages.fine_tune(config, Reached(stages.seed_backbone(config)), Sink(), folder, **more)


def weights(reached: Reached) -> list[Tensor]:
    return [tensor.cpu() for tensor in reached.network.state_dict().values()]


# All but the classifier of closed sets, which is trained as finetune=linear.
EPISODIC = [name for name in trained() if name != "classifier"]


@pytest.mark.parametrize("method", EPISODIC)
def test_every_method_fine_tunes_and_goes_on(fake: Fake, tmp_path: Path, method: str) -> None:
    overrides = fine_tuning(method)
    whole = tune(tmp_path / "whole", overrides)
    assert isinstance(whole.network, EpisodeLearner)
    assert all(tensor.is_cuda for tensor in whole.network.state_dict().values())
    asked = iter((True,))
    with pytest.raises(Interrupted):
        tune(tmp_path / "parts", overrides, stop=lambda: next(asked))
    state = checkpoint.load(tmp_path / "parts" / "checkpoints" / "finetune_last.pt")
    resumed = tune(tmp_path / "parts", overrides, state=state)
    assert resumed.step == whole.step > 1
    assert all(map(torch.equal, weights(whole), weights(resumed)))


@pytest.mark.parametrize(
    "options",
    [
        ["finetune.freeze=encoder"],
        ["finetune.mixup=0.5", "finetune.label_smoothing=0.1"],
        ["finetune.ema_decay=0.9", "finetune.optimizer=sgd", "data.placement=ram"],
        ["finetune.freeze_norms=true", "finetune.frozen_blocks=1", "data.placement=disk"],
    ],
)
def test_options_of_fine_tuning(fake: Fake, tmp_path: Path, options: list[str]) -> None:
    linear = {"finetune.freeze=encoder", "finetune.mixup=0.5"}
    method = "linear" if linear & {*options} else "prototypical"
    assert tune(tmp_path, [*fine_tuning(method), *options]).step > 0


def test_a_network_grows_and_is_pruned_under_labels_and_goes_on(fake: Fake, tmp_path: Path) -> None:
    overrides = [
        "ssl=none", "evolution=balanced", "sparsity=nase", "sparsity.rollback_tolerance=1",
        "sparsity.rollback_grace_epochs=0", "backbone.channels=[8,16]", "finetune=linear",
        "finetune.evolve=true", "finetune.epochs=5", "finetune.validation_episodes=4",
        "finetune.ema_decay=0.9", "hardware.batch_size=128",
    ]  # fmt: skip
    whole = tune(tmp_path / "whole", overrides)
    assert {record["kind"] for record in whole.history} == {"GROW", "PRUNE"}
    assert all(record["accepted"] for record in whole.history)
    assert all(tensor.is_cuda for tensor in whole.network.state_dict().values())
    asked = iter([False] * 16 + [True])  # in the middle of the epoch after the first growth
    with pytest.raises(Interrupted):
        tune(tmp_path / "parts", overrides, stop=lambda: next(asked, True))
    state = checkpoint.load(tmp_path / "parts" / "checkpoints" / "finetune_last.pt")
    assert [record["kind"] for record in state["finetune"]["history"]] == ["GROW"]
    resumed = tune(tmp_path / "parts", overrides, state=state)
    assert all(map(torch.equal, weights(whole), weights(resumed)))


def test_a_first_step_that_is_skipped_leaves_no_momenta(fake: Fake, tmp_path: Path) -> None:
    """Torch's fused SGD makes them before it knows that there is no step, and writes nothing."""
    sgd = ["finetune.optimizer=sgd", "hardware.precision=16-mixed"]
    config = config_of(*fine_tuning("prototypical"), *sgd)
    states: list[Any] = []
    step = torch.optim.SGD.step

    def watched(optimizer: torch.optim.SGD, *args: Any, **kwargs: Any) -> Any:
        found = step(optimizer, *args, **kwargs)
        states.append([s["momentum_buffer"] for s in optimizer.state.values() if s])
        return found

    torch.use_deterministic_algorithms(True)  # fills with NaN what is not written
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.optim.SGD, "step", watched)
            begin = Reached(stages.seed_backbone(config))
            scaled = torch.amp.GradScaler.__init__
            patched.setattr(
                torch.amp.GradScaler,
                "__init__",
                lambda scaler, device: scaled(scaler, device, init_scale=2.0**40),
            )
            with suppress(UserError):  # no step at all can be taken
                stages.fine_tune(config, begin, Sink(), tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(bool(each.isfinite().all()) for state in states for each in state)


@pytest.mark.parametrize(
    ("method", "options"), [*((one, []) for one in EPISODIC), ("linear", ["finetune.mixup=0.5"])]
)
def test_a_step_of_fine_tuning_does_not_make_the_host_wait(
    fake: Fake, tmp_path: Path, method: str, options: list[str]
) -> None:
    counts: list[int] = []

    def stop() -> bool:
        counts.append(fake.waits.total())
        return False

    more = options if method == "linear" else ["finetune.episodes_per_epoch=8"]
    tune(tmp_path, [*fine_tuning(method), *more, "tracking.interval_steps=1000"], stop=stop)
    steps = [after - before for before, after in pairwise(counts)]
    assert len(steps) > 2
    assert max(steps) <= (method == "r2d2"), steps  # whether its system could be solved is read


# -- a run from beginning to end -------------------------------------------------------------------


def test_a_run(fake: Fake) -> None:
    given = [
        *TINY, "ablation=A7", "tracking=jsonl", "pretrain.epochs=5", "hardware.max_memory_gb=6",
        "finetune=prototypical", *ONE_EPOCH, *EPISODES,
    ]  # fmt: skip
    folder = run(load(given), given)
    results = json.loads((folder / "results.json").read_text())
    assert results["status"] == "FINISHED"
    assert results["mutations"] > 0
    assert results["efficiency"]["device"] == "cuda"
    assert json.loads((folder / "environment.json").read_text())["gpu"] == NAME
    assert fake.memory_fraction == 6 / 12
    again = [*TINY, "task=evaluate", f"checkpoint={folder}", "tracking=jsonl"]
    assert (run(load(again), again) / "results.json").exists()


def test_the_best_network_is_compared_with_the_last(fake: Fake) -> None:
    given = [*TINY, "ablation=A2", "tracking=jsonl", "pretrain.epochs=2"]
    folder = run(load(given), given)
    results = json.loads((folder / "results.json").read_text())
    assert results["best"]["minus_last"]


# -- measurements ----------------------------------------------------------------------------------


def test_size_and_speed(fake: Fake) -> None:
    config = config_of()
    backbone = stages.seed_backbone(config)
    here = evaluating.efficiency(backbone, 16, torch.device("cpu"))
    there = evaluating.efficiency(backbone.to(CUDA), 16, CUDA)
    assert there["device"] == "cuda"
    assert there["latency_ms_b64"]
    assert fake.waits["synchronize hardware/latency.py:_wait"] > 0
    assert fake.waits["synchronize hardware/memory.py:_cuda_peak"] == 1
    for key in ("params", "macs"):
        assert there[key] == here[key]


def test_a_network_is_timed_where_it_is_asked_for(fake: Fake) -> None:
    seen = set()
    layer = nn.Conv2d(3, 4, 3)
    layer.register_forward_pre_hook(lambda _, inputs: seen.add(inputs[0].is_cuda))
    assert latency_ms(layer, 16, 2, repeats=2, warmup=1, device=CUDA)
    assert seen == {True}
    assert not layer.weight.is_cuda


def test_weights_of_a_file_come_to_the_cpu(fake: Fake, tmp_path: Path) -> None:
    """Whatever device they were saved on: there may be none."""
    path = tmp_path / "weights.pt"
    torch.save(nn.Linear(2, 2).to(CUDA).state_dict(), path)
    assert not any(tensor.is_cuda for tensor in _read(path, "backbone.weights").values())


def test_difficulty(fake: Fake) -> None:
    images = torch.randint(0, 255, (3, 3, 16, 16), dtype=torch.uint8)
    here, there = difficulty(images), difficulty(images.to(CUDA))
    assert there.score.is_cuda
    assert torch.equal(here.score, there.score.cpu())


def test_one_device_has_no_group(fake: Fake) -> None:
    fabric = build_fabric("cuda", 1, "16-mixed")
    assert (fabric.world_size, fabric.device) == (1, CUDA)


@pytest.mark.parametrize("level", SYNTHETIC_LEVELS)
def test_drawing(fake: Fake, level: str) -> None:
    """Indices may lie where they like."""
    drawn = render(level, torch.arange(4), seed=0, image_size=16, device=CUDA)
    assert drawn.is_cuda
    assert torch.equal(
        drawn, render(level, torch.arange(4, device=CUDA), seed=0, image_size=16, device=CUDA)
    )
