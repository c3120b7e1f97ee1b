"""No accuracy of embeddings that are none, and a doubt where it means little."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sseg_nase import evaluate, stages
from sseg_nase.config.compose import load
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.fewshot.evaluation import NotFiniteError, doubts, normalized
from sseg_nase.nets.backbone import Backbone
from sseg_nase.run import run
from sseg_nase.training import checkpoint

TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.precision=32-true",
    "tracking=jsonl",
    "evaluation.shots=[1]",
]
NAN, INF = float("nan"), float("inf")


def spoil_nan(network: Backbone) -> None:
    network.blocks[2].norm.bias[3] = NAN


def spoil_statistic(network: Backbone) -> None:
    """ReLU makes zeros of what comes of it: the embeddings do not show it."""
    network.blocks[2].norm.running_mean[3] = INF


def overflow(network: Backbone) -> None:
    """All weights are finite; what they give is not."""
    for block in network.blocks:
        block.norm.weight.fill_(1e25)


def too_long(network: Backbone) -> None:
    """All embeddings are finite; their lengths are not."""
    network.blocks[2].norm.weight.fill_(1e30)


def spoiled(config: Config, spoil: Callable[[Backbone], None]) -> Backbone:
    network = stages.seed_backbone(config)
    with torch.no_grad():
        spoil(network)
    return network.eval()


@pytest.mark.parametrize("spoil", [spoil_nan, overflow, too_long])
@pytest.mark.parametrize("method", ["prototype", "ridge", "logistic", "sinkhorn", "maml"])
def test_embeddings_that_are_not_finite_are_refused(
    spoil: Callable[[Backbone], None], method: str
) -> None:
    if method == "maml" and spoil is not spoil_nan:
        pytest.skip("MAML takes the statistics of the batch, and asks for no length")
    maml = ["finetune=maml", "evaluation.normalize=none"] if method == "maml" else []
    config = load([*TINY, "evaluation.episodes=4", f"evaluation.method={method}", *maml])
    network = spoiled(config, spoil)
    tasks = stages.fewshot_tasks(config)
    reached = stages.Reached(network, name="checkpoint=some.pt")
    with pytest.raises(UserError, match=r"checkpoint=some\.pt cannot be .* dataset digits/val"):
        stages.evaluate_before_tuning(tasks, reached, torch.device("cpu"))


def test_by_hand_too() -> None:
    config = load(TINY)
    with pytest.raises(UserError, match="the network cannot be evaluated on dataset digits/val"):
        evaluate(spoiled(config, overflow), config)


def saved(config: Config, spoil: Callable[[Backbone], None], path: Path) -> None:
    network = spoiled(config, spoil)
    student = {f"backbone.{name}": tensor for name, tensor in network.state_dict().items()}
    payload = {
        "schema": checkpoint.SCHEMA,
        "architecture": network.architecture.to_dict(),
        "student": student,
        "step": 0,
        "images_seen": {},
        "history": [],
    }
    torch.save(payload, path)  # as an older version, which looked at nothing


@pytest.mark.parametrize("spoil", [spoil_nan, spoil_statistic, overflow])
def test_task_evaluate_names_the_checkpoint_and_the_images(
    spoil: Callable[[Backbone], None],
) -> None:
    asked = [*TINY, "task=evaluate", "checkpoint=old.pt"]
    config = load(asked)
    saved(config, spoil, Path("old.pt"))
    with pytest.raises(
        UserError, match=r"checkpoint=.*old\.pt cannot be .* dataset.digits"
    ) as error:
        run(config, asked)
    (directory,) = Path("runs/debug").iterdir()
    status = json.loads((directory / "status.json").read_text())
    assert (status["status"], status["error"]) == ("FAILED", str(error.value))
    assert not (directory / "results.json").exists()


def test_nothing_is_tuned_from_a_checkpoint_that_is_not_finite() -> None:
    asked = [*TINY, "finetune=prototypical", "finetune.from=old.pt"]
    saved(load(TINY), spoil_nan, Path("old.pt"))
    with pytest.raises(UserError, match=r"checkpoint=.*old\.pt cannot be used on dataset=digits"):
        run(load(asked), asked)


def test_a_validation_that_is_not_finite_ends_fine_tuning_with_what_to_change(
    tmp_path: Path,
) -> None:
    config = load(
        [*TINY, "finetune=prototypical", "finetune.episodes_per_epoch=4", "finetune.queries=5"]
    )
    network = spoiled(config, lambda network: None)

    def quiet(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output if module.training else output * NAN

    network.register_forward_hook(quiet)
    with pytest.raises(UserError, match="the network that is fine-tuned cannot") as error:
        stages.fine_tune(config, stages.Reached(network), stages.finetuning.Sink(), tmp_path)
    assert "finetune.lr_encoder=0.001" in str(error.value)
    assert not list(tmp_path.rglob("*.pt"))


# -- doubts ----------------------------------------------------------------------------------------


def constant(network: Backbone) -> None:
    network.blocks[2].norm.weight.fill_(0)
    network.blocks[2].norm.bias.fill_(0.7)


def dead(network: Backbone) -> None:
    network.blocks[2].norm.weight.fill_(0)
    network.blocks[2].norm.bias.fill_(-1)


@pytest.mark.parametrize("spoil", [constant, dead])
@pytest.mark.parametrize("normalize", ["cl2n", "l2n", "none"])
def test_embeddings_that_are_all_equal_are_a_doubt(
    spoil: Callable[[Backbone], None], normalize: str
) -> None:
    asked = [*TINY, "task=evaluate", "checkpoint=old.pt", f"evaluation.normalize={normalize}"]
    config = load(asked)
    saved(config, spoil, Path("old.pt"))
    directory = run(config, asked)
    results = json.loads((directory / "results.json").read_text())
    first, *_ = results["fewshot"]["digits/val/5w1s"]["doubts"]
    assert first == "all embeddings are equal: the network tells no image from another"
    lines = (directory / "events.jsonl").read_text().splitlines()
    warnings = [e["values"]["text"] for e in map(json.loads, lines) if e["kind"] == "warning"]
    assert f"digits/val/5w1s, the last network: {first}. Its accuracy means little." in warnings


def test_a_healthy_network_raises_no_doubt() -> None:
    config = load(TINY)
    evaluated = evaluate(stages.seed_backbone(config).eval(), config)
    assert [result["doubts"] for result in evaluated.results.values()] == [[]]


def test_what_is_doubted() -> None:
    evaluation = load(TINY).evaluation  # 5 ways, cl2n, cosine
    rows = torch.eye(4) + 1
    spread = np.array([0.2, 0.4])
    assert doubts(rows, rows, spread, evaluation) == []
    assert doubts(None, None, spread, evaluation) == []
    zero = rows.clone()
    zero[1] = 0
    assert doubts(rows, zero, spread, evaluation) == [
        "1 of 4 embeddings are zero, without a direction"
    ]
    plain = dataclasses.replace(evaluation, normalize="none", metric="euclidean")
    assert doubts(rows, zero, spread, plain) == []
    (same,) = doubts(rows, rows, np.array([0.2, 0.2, 0.2]), evaluation)
    assert same == "each of the 3 episodes has the same accuracy of 20.00 % (chance is 20.00 %)"
    assert doubts(rows, rows, np.array([1.0, 1.0]), evaluation) == []  # an easy one
    assert doubts(rows, rows, np.array([0.2]), evaluation) == []


def test_features_are_normalized_where_that_is_possible() -> None:
    evaluation = load(TINY).evaluation
    rows, mean = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2)
    expected = torch.tensor([[0.6, 0.8], [0.0, 0.0]])
    torch.testing.assert_close(normalized(rows, mean, evaluation), expected)
    none = dataclasses.replace(evaluation, normalize="none")
    assert torch.equal(normalized(rows * 1e30, None, none), rows * 1e30)
    for bad, message in (
        (torch.tensor([[1.0, NAN], [1.0, 2.0]]), "1 of 2 images are not finite"),
        (rows * 1e30, "so large that their lengths"),
    ):
        with pytest.raises(NotFiniteError, match=message):
            normalized(bad, mean, evaluation)
    with pytest.raises(NotFiniteError, match="mean embedding of the base split"):
        normalized(rows, torch.tensor([INF, 0.0]), evaluation)


def test_options_of_the_method_may_be_to_blame() -> None:
    config = load(
        [
            *TINY,
            "finetune=maml",
            "evaluation.method=maml",
            "evaluation.normalize=none",
            "evaluation.episodes=2",
            "evaluation.maml.lr=1e18",
        ]
    )
    reached = stages.Reached(stages.seed_backbone(config))
    with pytest.raises(UserError, match=r"evaluation\.maml\.lr=1e\+18") as error:
        stages.evaluate_before_tuning(stages.fewshot_tasks(config), reached, torch.device("cpu"))
    assert "the untrained seed network cannot be evaluated on dataset digits/val" in str(
        error.value
    )
