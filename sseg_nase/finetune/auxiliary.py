"""What a classifier may learn beside the labels: from a teacher, and from turned images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sseg_nase.config.groups.finetune import Classifying, FinetuneConfig, Linear
from sseg_nase.finetune.learner import ROTATION, TO_TEACHER, BaseClassifier, EpisodeLearner
from sseg_nase.nets.description import Description

ANGLES = 4  # 0, 90, 180 and 270 degrees


@dataclass(frozen=True)
class Taught:
    """What a teacher says of images: embeddings `[B, D]`, logits of the base classes `[B, C]`."""

    features: Tensor
    logits: Tensor


class Teacher:
    """The frozen network and base classifier of another run, of any family."""

    def __init__(self, learner: EpisodeLearner, device: torch.device) -> None:
        head = learner.head
        assert isinstance(head, nn.Linear), type(head)
        self.architecture: Description = learner.backbone.architecture
        self.backbone = learner.backbone.for_inference().requires_grad_(False).to(device)
        self.classifier = nn.Linear(head.in_features, head.out_features)
        self.classifier.load_state_dict({k: head.state_dict()[k] for k in ("weight", "bias")})
        self.classifier.requires_grad_(False).to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Taught:
        """Of normalised images `[B, C, S, S]`, with the BN statistics that it has."""
        features = self.backbone(images).float()
        with torch.autocast(images.device.type, enabled=False):
            return Taught(features, self.classifier(features))


def add_beside(
    head: nn.Module, options: FinetuneConfig, teacher: Teacher | None, generator: torch.Generator
) -> None:
    """Add to the embedding, beside a `BaseClassifier`, what `options` need, newly initialised."""
    if isinstance(options, Classifying) and options.rotation:
        _add(head, ROTATION, ANGLES, generator)
    if teacher is not None and isinstance(options, Linear) and options.feature_weight:
        _add(head, TO_TEACHER, teacher.architecture.features, generator)


def add_like(head: nn.Module, like: nn.Module, generator: torch.Generator) -> None:
    """Give `head` parts like those beside `like`, newly initialised, for its own embedding."""
    if isinstance(like, BaseClassifier):
        for name, part in like.beside.items():
            assert isinstance(part, nn.Linear)
            _add(head, name, part.out_features, generator)


def _add(head: nn.Module, name: str, out: int, generator: torch.Generator) -> None:
    assert isinstance(head, BaseClassifier), type(head)
    layer = nn.Linear(head.in_features, out)
    nn.init.normal_(layer.weight, std=head.in_features**-0.5, generator=generator)
    nn.init.zeros_(layer.bias)
    head.beside[name] = layer


def softened(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(t / T) ‖ softmax(s / T)), the mean over images, of logits `[B, C]` each.

    Hinton et al. 2015, section 2: times T², gradients are of one size at every temperature.
    """
    aims, found = ((z / temperature).log_softmax(dim=-1) for z in (taught, logits))
    return temperature**2 * F.kl_div(found, aims, reduction="batchmean", log_target=True)


def cosine_distance(found: Tensor, aims: Tensor) -> Tensor:
    """1 − cos, the mean over rows `[B, D]`."""
    return 1 - F.cosine_similarity(found, aims, dim=-1).mean()


def turned(images: Tensor) -> Tensor:
    """The last three quarters of images `[B, C, S, S]`, turned by 90, 180 and 270 degrees.

    The first quarter stays out: those are the images as they are.
    """
    quarters = images.tensor_split(ANGLES)
    copies = [quarters[n].rot90(n, (2, 3)) for n in range(1, ANGLES)]
    return torch.cat(copies).contiguous(memory_format=torch.channels_last)


def count_turned(images: Tensor) -> int:
    """How many images `turned` makes."""
    return len(images) - len(images.tensor_split(ANGLES)[0])


def rotation_loss(rotation: nn.Module, features: Tensor, count: int) -> Tensor:
    """Cross-entropy of the angle (Gidaris et al. 2019, section 3.2), of every image at one angle.

    `features` `[count + turned, D]`: of `count` images as they are, then of `turned` of them.
    """
    sizes = [len(part) for part in torch.empty(count, 0).tensor_split(ANGLES)]
    shown = torch.cat((features[: sizes[0]], features[count:]))
    angles = torch.arange(ANGLES, device=features.device)
    truth = angles.repeat_interleave(torch.tensor(sizes, device=features.device))
    return F.cross_entropy(rotation(shown), truth)
