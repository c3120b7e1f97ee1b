"""The evaluator `inherited`, from the configuration: how a candidate is trained in this process.

It is pretrained, fine-tuned, or both, as a run would be, and evaluated on val.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sseg_nase.config.groups.evaluator import OfInherited
from sseg_nase.config.schema import Config
from sseg_nase.config.sequence import stages_of
from sseg_nase.data.random import derive
from sseg_nase.errors import UserError
from sseg_nase.search import Cost, Inherited
from sseg_nase.searches.jobs import UNKNOWN_COST, scores_of
from sseg_nase.spaces import NetworkSpace
from sseg_nase.spaces.space import Space

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sseg_nase.nets.backbone import Backbone
    from sseg_nase.stages import OtherRun, Reached

WEIGHTS, TRAINING = "weights", "training"


def check_inheritance(config: Config, space: Space) -> None:
    """Raise `UserError` where weights are to be inherited, or not, by an evaluator that does not.

    Also for a training that a point says: in this process all are trained alike.
    """
    if not isinstance(config.evaluator, OfInherited):
        if not config.search.inherit:
            raise UserError(
                f"search.inherit=false: evaluator={config.evaluator.name} trains each candidate "
                "from scratch anyway; leave it out, or choose evaluator=inherited."
            )
        return
    if getattr(space, "trains", ""):
        raise UserError(
            "evaluator=inherited space.settings.trains: its candidates are all trained with the "
            "learning rate and optimizer of the configuration; choose evaluator=run, or leave "
            "trains out."
        )


def inherited(config: Config, networks: NetworkSpace, folder: Path) -> Inherited:
    """Return the evaluator that trains on from the parent's weights, which it keeps in `folder`.

    A candidate is trained as the configuration says, in this process, and evaluated on val. Its
    checkpoints are not kept. The head of fine-tuning is kept, too, where that is the only training:
    after another one the embedding is no longer what it was trained on. Raises `UserError`.
    """
    import torch

    from sseg_nase import stages
    from sseg_nase.fewshot.evaluation import NotFiniteError
    from sseg_nase.finetune.learner import EpisodeLearner, head_for
    from sseg_nase.training.divergence import DivergenceError

    config, _ = stages.fitted(dataclasses.replace(config, task="pipeline", resume=None))
    tasks = stages.tasks_of(config)
    device = torch.device(config.hardware.accelerator)
    pretrains = config.ssl.trains and config.pretrain.epochs > 0
    teacher, make_head = None, None
    if config.finetune.trains:
        base = stages.labelled(config)
        teacher = stages.classifier_of(config, base)
        if not pretrains and len(stages_of(config)) == 1:
            make_head = partial(head_for, config.finetune, len(base.class_names))

    def train(
        network: Backbone, head: nn.Module | None, seed: int
    ) -> tuple[Mapping[str, float], Cost]:
        reached = stages.Reached(network, name="the candidate")
        try:
            if pretrains:
                reached = _pretrained(config, network, seed)
            if config.finetune.trains:
                begun = None if head is None else head.state_dict()
                reached = _tuned(config, reached, teacher, folder / WEIGHTS / TRAINING, begun)
                network.load_state_dict(reached.backbone.state_dict())
                if head is not None:
                    assert isinstance(reached.network, EpisodeLearner)
                    head.load_state_dict(reached.network.head.state_dict())
            evaluated = stages.evaluate(tasks, reached, device)
        except (DivergenceError, NotFiniteError) as error:  # its result; the search goes on
            raise ValueError(str(error)) from error
        except UserError as error:
            if isinstance(error.__cause__, DivergenceError | NotFiniteError):
                raise ValueError(str(error.__cause__)) from error
            raise
        if reached.macs is None:
            raise UserError(UNKNOWN_COST)
        images = float(sum(reached.images_seen.values()))
        cost = Cost(0.0, images, float(sum(reached.macs.values())))
        return scores_of({"fewshot": evaluated.results, "efficiency": {}}), cost

    return Inherited(
        networks,
        train,
        folder / WEIGHTS,
        config.seed,
        most=config.search.pool.max_models,
        inherit=config.search.inherit,
        make_head=make_head,
    )


def _pretrained(config: Config, network: Backbone, seed: int) -> Reached:
    """What the network has come to without labels, trained in place."""
    import torch

    from sseg_nase.ssl.methods import make_learner
    from sseg_nase.stages import Reached
    from sseg_nase.stages.pretraining import trainer_of
    from sseg_nase.tracking.sink import Sink

    generator = torch.Generator().manual_seed(derive(seed, "weights"))
    learner = make_learner(network, config.ssl, generator)
    trainer = trainer_of(config, [], Sink(), None, lambda: False, learner)
    trainer.fit()
    progress = trainer.state.progress
    return Reached(
        network,
        progress.step,
        progress.images_seen,
        name="the candidate",
        macs=trainer.ledger.spent,
        epochs=progress.epoch,
    )


def _tuned(
    config: Config,
    reached: Reached,
    teacher: OtherRun | None,
    folder: Path,
    head: Mapping[str, Tensor] | None,
) -> Reached:
    """What the network has come to on the labelled base images: the best on val of each stage.

    `teacher`: what finetune=linear is distilled from. `folder`: for checkpoints, which are gone
    afterwards, as are those of a search that was killed. `head`: what the only stage begins with.
    """
    from sseg_nase import stages
    from sseg_nase.config.groups.finetune import Linear
    from sseg_nase.stages.finetuning import tuning_stages
    from sseg_nase.tracking.sink import Sink

    shutil.rmtree(folder, ignore_errors=True)
    try:
        for stage, settings in zip(tuning_stages(config), stages_of(config), strict=True):
            reached = stages.fine_tune(
                settings,
                reached,
                Sink(),
                folder,
                stage=stage,
                teacher=teacher if isinstance(settings.finetune, Linear) else None,
                head=head,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return reached
