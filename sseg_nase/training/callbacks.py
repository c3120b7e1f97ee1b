"""What listens to training without changing it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sseg_nase.evolution.history import architecture_figures
from sseg_nase.files import check_room
from sseg_nase.hardware.memory import MemoryUse, memory_use, remedies
from sseg_nase.training import checkpoint
from sseg_nase.training.events import Callback, Event

if TYPE_CHECKING:
    from sseg_nase.config.schema import Config
    from sseg_nase.training.state import Pretraining

LEVELS = ("ok", "warning", "critical")
FILES = ("last.pt", "best.pt")
MOMENTS = 2  # what an optimizer keeps per weight, at most, after its first step


class Checkpoints(Callback):
    """Keeps `last.pt`, to go on from, and `best.pt`, the lowest loss at the latest level.

    `last.pt` is written before an epoch when `interval` epochs are done or the architecture has
    changed, when training is interrupted, and at the end; always whole, so that the one before it
    stays until then. Losses of different levels, or image sizes, do not compare: each starts a new
    best.
    `extra` goes into every file. The latest `keep` of those after each `interval` are kept under
    the number of their epochs, too: `epoch_0010.pt`. Before the first epoch there must be room for
    what is missing of both files, and for those, or `StorageError` is raised.
    """

    def __init__(
        self, folder: Path, interval: int, extra: dict[str, Any], *, keep: int = 0
    ) -> None:
        self.folder, self.interval, self.extra, self.keep = folder, interval, extra, keep
        self.best: tuple[float, ...] | None = None
        self.saved_mutations: list[bool] = []

    def on(self, event: Event, state: Pretraining) -> None:
        """Save where the state is one to resume from, or the loss the best so far."""
        if event is Event.FIT_START:
            missing = sum(not (self.folder / name).exists() for name in FILES)
            wanted = max(1, missing) + self.keep - min(self.keep, len(self._numbered()))
            check_room(self.folder, wanted * size_of(state.checkpoint()))
        if event is Event.EPOCH_END and state.means is not None:
            # The schedule may stand at the next level already.
            level = state.config.curriculum.levels.index(state.means.level)
            scheduled = state.config.pretrain.image_sizes is not None
            size = (-state.image_size,) if scheduled else ()
            score = (-level, *size, state.means.contrastive)
            if self.best is None or score < self.best:
                self.best = score
                self._save("best.pt", state)
        mutations = [record.accepted for record in state.progress.history]
        due = state.progress.epoch > 0 and state.progress.epoch % self.interval == 0
        changed = mutations != self.saved_mutations
        between = event is Event.EPOCH_START and (due or changed)
        if between or event in (Event.INTERRUPT, Event.FIT_END):
            self.saved_mutations = mutations
            self._save("last.pt", state)
        if self.keep and due and (between or event is Event.FIT_END):
            self._save(f"epoch_{state.progress.epoch:04d}.pt", state)
            for old in self._numbered()[: -self.keep]:
                old.unlink()

    def _numbered(self) -> list[Path]:
        """The numbered checkpoints that are there, in the order of their epochs."""
        found = self.folder.glob("epoch_*.pt")
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def _save(self, name: str, state: Pretraining) -> None:
        checkpoint.save(self.folder / name, {**state.checkpoint(), **self.extra})

    def state_dict(self) -> dict[str, Any]:
        """The best score so far."""
        return {"best": self.best, "saved_mutations": self.saved_mutations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the best score so far."""
        self.best, self.saved_mutations = state["best"], state["saved_mutations"]


def size_of(state: Any) -> int:
    """Bytes of a checkpoint with the tensors of `state`, once its optimizer has its moments."""
    size = _tensor_bytes(state)
    student = state.get("student") if isinstance(state, dict) else None
    moments = state.get("moments") if isinstance(state, dict) else None
    return size if moments else size + MOMENTS * _tensor_bytes(student)


def _tensor_bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_tensor_bytes, value.values()))
    return sum(map(_tensor_bytes, value)) if isinstance(value, list | tuple) else 0


class ArchitectureMetrics(Callback):
    """Tells `arch/*` before every epoch and at the end."""

    def on(self, event: Event, state: Pretraining) -> None:
        """Log the architecture that is trained from here on."""
        if event not in (Event.EPOCH_START, Event.FIT_END):
            return
        figures = architecture_figures(state.networks.architecture, state.progress.history)
        state.sink.metrics(figures, state.progress.step)


class MemoryWatch(Callback):
    """Records `hardware/memory_mb` after every epoch and mutation, and warns before it runs out.

    A warning comes once per level, at 85 % and at 95 % of `hardware.max_memory_gb` or, on CUDA,
    of what the device has. On CUDA the allocator enforces the cap; on the CPU it is only watched
    here, and without `max_memory_gb` there is nothing to compare with.
    """

    def __init__(self) -> None:
        self._told = LEVELS.index("ok")
        self._last_step = -1

    def on(self, event: Event, state: Pretraining) -> None:
        """Take a snapshot where the epoch or a mutation ends."""
        if event not in (Event.EPOCH_END, Event.MUTATION):
            return
        use = memory_use(state.device, state.config.hardware.max_memory_gb)
        if use.used_mb is None:
            return
        # A metric has one value per step: a mutation's stands at the next one, like `mutation/*`.
        self._last_step = max(state.progress.step, self._last_step + 1)
        state.sink.metrics({"hardware/memory_mb": use.used_mb}, self._last_step)
        level = LEVELS.index(use.level)
        if level > self._told:
            self._told = level
            state.sink.event("warning", {"text": _warning(use, state.config)})

    def state_dict(self) -> dict[str, Any]:
        """The last step that has a figure; a process that resumes may warn again."""
        return {"last_step": self._last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on without a second figure of one step."""
        self._last_step = state["last_step"]


def _warning(use: MemoryUse, config: Config) -> str:
    assert use.used_mb is not None
    assert use.cap_mb is not None
    hardware = config.hardware
    of = f"the {hardware.accelerator} device"
    if hardware.max_memory_gb is not None:
        of = f"hardware.max_memory_gb={hardware.max_memory_gb:g}"
    return (
        f"memory is {use.level}: {use.used_mb:,.0f} of {use.cap_mb:,.0f} MiB "
        f"({use.used_mb / use.cap_mb:.0%}) of {of} are used. For a run that stays below, change "
        f"one or more of: {'; '.join(remedies(config))}."
    )
