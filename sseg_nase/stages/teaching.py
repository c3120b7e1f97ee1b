"""The network of another run as a teacher: which file, whether it fits, and what it has cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sseg_nase.config.schema import Config
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.finetune.auxiliary import Teacher
from sseg_nase.finetune.learner import BaseClassifier, EpisodeLearner
from sseg_nase.stages.setup import Reached, check_sizes, stored
from sseg_nase.training import checkpoint

CLASSIFIER = "finetune=linear"
NAMED = 5  # classes in a message


@dataclasses.dataclass(frozen=True)
class OtherRun:
    """A teacher as a run has it: its network, the file that this came from, and what it cost.

    `spent`: multiply-accumulates of its training; None where its checkpoint does not say.
    """

    reached: Reached
    path: Path
    data: Mapping[str, Any]

    @property
    def spent(self) -> int | None:
        """Multiply-accumulates of the teacher's own training."""
        return None if self.reached.macs is None else sum(self.reached.macs.values())

    @property
    def words(self) -> str:
        """What messages call it."""
        architecture = self.reached.backbone.architecture
        return f"{self.path} ({architecture.name}, {architecture.params:,} params)"

    def on(self, device: torch.device) -> Teacher:
        """Ready to teach there."""
        assert isinstance(self.reached.network, EpisodeLearner)
        return Teacher(self.reached.network, device)

    def in_results(self) -> dict[str, Any]:
        """What results.json tells of it."""
        architecture = self.reached.backbone.architecture
        return {
            "path": str(self.path),
            "network": architecture.name,
            "params": architecture.params,
            "macs": architecture.macs(),
            "images_seen": dict(self.reached.images_seen),
            "training_macs": self.spent,
        }


def classifier_file(path: Path) -> Path:
    """The checkpoint with the base classifier of the run in the folder `path`; a file is itself."""
    if not path.is_dir():
        return path
    earlier = path / "checkpoints" / "finetune_linear.pt"  # where other stages followed
    return earlier if earlier.exists() else checkpoint.file_of(path)


def classifier_of(config: Config, base: ImageStore) -> OtherRun | None:
    """The teacher that `finetune.teacher` names, for the classes of `base`; None without one.

    Raises `UserError` where it is none: no classifier, of other classes, or a network for other
    images.
    """
    given = config.finetune.teacher
    if given is None:
        return None
    key = f"finetune.teacher={given}"
    path = classifier_file(Path(given).expanduser())
    reached = _of_any_kind(key, path, config)
    network = reached.network
    if not (isinstance(network, EpisodeLearner) and isinstance(network.head, BaseClassifier)):
        raise UserError(
            f"{key}: {path} holds no classifier of the base classes. Give the folder of a run "
            f"with {CLASSIFIER}, or its checkpoints/finetune_best.pt."
        )
    data = checkpoint.load(path).get("data") or {}
    known = classes_tuned_on(data)
    if known is None or len(known) != network.head.out_features:
        raise UserError(
            f"{key}: {path} does not say of which classes its classifier is. Train it by a run "
            f"with {CLASSIFIER}, and give its folder."
        )
    if known != list(base.class_names):
        raise UserError(
            f"{key}: its classifier is of other classes than dataset={config.dataset.name}: "
            f"{_difference(known, list(base.class_names))}. Give a run with {CLASSIFIER} on the "
            "same images."
        )
    return OtherRun(reached, path, data)


def guide_of(config: Config) -> OtherRun | None:
    """Load the trained network that `ssl.teacher` names; None where it names none.

    Raises `UserError` where it is none, or one for other images.
    """
    given = config.ssl.teacher
    if given is None:
        return None
    key, path = f"ssl.teacher={given}", checkpoint.file_of(Path(given).expanduser())
    reached = _of_any_kind(key, path, config)
    schedule = config.pretrain.image_sizes
    check_sizes(f"{key} with pretrain.image_sizes", schedule, reached.backbone.architecture)
    return OtherRun(reached, path, checkpoint.load(path).get("data") or {})


def _of_any_kind(key: str, path: Path, config: Config) -> Reached:
    """What a checkpoint holds, whatever backbone the run has."""
    try:
        any_kind = dataclasses.replace(config.backbone, name=checkpoint.DEFAULT)
        return stored(path, dataclasses.replace(config, backbone=any_kind))
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


def classes_tuned_on(data: Mapping[str, Any]) -> list[str] | None:
    """The names of the base classes by number, of a run with that data.json; None: not said."""
    roles, images = data.get("roles") or {}, data.get("images") or {}
    tuned = [images[key] for key in roles.get("finetune", ()) if key in images]
    return list(tuned[0]["classes"]) if tuned else None


def _difference(theirs: Sequence[str], ours: Sequence[str]) -> str:
    missing = [name for name in ours if name not in set(theirs)]
    if not missing and len(theirs) == len(ours):
        return "the same names in another order"
    named = ", ".join(missing[:NAMED]) + (", …" if missing[NAMED:] else "")
    lacks = f", and it does not know {named}" if named else ""
    return f"{len(theirs)} classes instead of {len(ours)}{lacks}"
