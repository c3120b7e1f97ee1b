"""What a training costs: its multiply-accumulates, by what they were spent on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sseg_nase.counting import BACKWARD
from sseg_nase.nets.description import Description
from sseg_nase.ssl.methods import Compared, SSLMethod
from sseg_nase.training.accumulation import Views
from sseg_nase.training.distributed import ranks
from sseg_nase.training.networks import Networks

STUDENT, TEACHER, CONTROL, TRIALS, IMPORTANCE, CHECKS = PARTS = (
    "student", "teacher", "control", "trials", "importance", "checks",
)  # fmt: skip
FINETUNE = "finetune"  # what is counted by `finetune.loop`, after these
TEACHER_RUN = "teacher_run"  # the training of a teacher from another run, in that run


class Ledger:
    """Multiply-accumulates of backbones, over all processes; heads and norms are not counted.

    `student` and `teacher` (a guide's passes, too): steps of the training. `control`: those of the
    network without a mutation that is on probation. `trials`: of candidates. `importance`: of
    channels. `checks`: held losses, the gap, re-estimated BN statistics. An image counts at the
    architecture and the size of the moment: once for a forward pass, three times with the backward
    pass.
    """

    def __init__(self) -> None:
        self.spent = dict.fromkeys(PARTS, 0)
        self.known = True

    def add(
        self, part: str, architecture: Description, images: Sequence[Tensor], passes: int = 1
    ) -> None:
        """`passes` of `images`, each `[..., C, H, W]`, through a network."""
        count = sum(
            each[..., 0, 0, 0].numel() * architecture.macs(each.shape[-1]) for each in images
        )
        self.spent[part] += passes * count * ranks()

    def add_loss(
        self,
        part: str,
        networks: Networks,
        method: SSLMethod,
        parts: Sequence[Views],
        *,
        backward: bool = True,
        teacher: str | None = None,
    ) -> None:
        """The loss of one batch in `parts`; the teacher's passes are counted as `teacher`."""
        passes = 1
        if backward:
            replayed = len(parts) > 1 and isinstance(method.loss, Compared)
            passes += BACKWARD + replayed + networks.learner.backbone.gradient_checkpointing
        for views in parts:
            self.add(part, networks.architecture, views, passes)
            if networks.teacher is not None:
                seen = views[0] if method.has_target else views[0][:1]
                self.add(teacher or part, networks.architecture, [seen])
            if networks.guide is not None and backward:
                self.add(teacher or part, networks.guide.architecture, [views[0][:1]])

    def state(self) -> dict[str, int] | None:
        """For the checkpoint."""
        return dict(self.spent) if self.known else None

    def load(self, spent: Mapping[str, int] | None) -> None:
        """From a checkpoint; what one of an older version has spent is not known."""
        self.known = spent is not None
        self.spent = dict.fromkeys(PARTS, 0) | dict(spent or {})
