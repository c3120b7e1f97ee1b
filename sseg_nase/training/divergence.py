"""Training that comes apart: seen within an epoch, said once, and never saved over what was fine.

Pretraining and fine-tuning ask the same `Guard`. On a CPU it looks at every step. On CUDA that
would make the host wait for the device in every step, so it looks where the loop reads the device
anyway: where a step is logged, and at the end of the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sseg_nase.config.commands import command
from sseg_nase.config.conf_files import usual_of
from sseg_nase.config.groups.finetune import Maml
from sseg_nase.config.groups.optimizer import OptimizerConfig
from sseg_nase.config.options import option_of
from sseg_nase.config.schema import Config, FinetuneConfig
from sseg_nase.errors import UserError
from sseg_nase.finite import finite, not_finite, shortened
from sseg_nase.tracking.sink import Sink
from sseg_nase.training.distributed import any_rank

if TYPE_CHECKING:
    from sseg_nase.training.fabric import Fabric

# Healthy training leaves the loss within a few times its first value, and the root mean square of
# the weights between 0.05 and 0.5; learning rates a thousand times too high move both past these.
LARGEST_LOSS = 1e4  # times that of the first step, or times 1 where that is smaller
LARGEST_WEIGHTS = 1e3  # times the root mean square at the start, or times SMALLEST_START
LARGE_WEIGHTS = 30.0  # likewise: said loudly, and training continues
SMALLEST_START = 0.1  # heads start with weights near 0, and may leave them
# The gradient scaler of 16-mixed halves its scale at every step that it skips, from 2^16 on: after
# so many in a row no scale is left at which gradients fit into float16.
MOST_SKIPPED = 40
FEWEST_SKIPPED = 4  # in epochs of fewer steps: the scale may still be settling
LARGEST_DECAY = 1.0  # published ones are 1e-6 to 0.5
USUAL_DECAY = 1e-4  # what conf/optimizer has


class DivergenceError(UserError):
    """Training has come apart. What to change belongs into the message: see `explained`."""


class Guard:
    """Looks at losses, weights and skipped steps of one training; raises `DivergenceError`.

    `parts`: what is trained, by name; their size at the time of this call is the measure. Every
    process must ask the same questions at the same time.
    """

    def __init__(
        self, fabric: Fabric, parts: Mapping[str, nn.Module], *, steps_per_epoch: int, what: str
    ) -> None:
        self.what = what
        self.at_every_step = fabric.device.type == "cpu"
        self.scaler = getattr(fabric.strategy.precision, "scaler", None)
        self.most_skipped = min(max(steps_per_epoch, FEWEST_SKIPPED), MOST_SKIPPED)
        self.start = {name: max(_size(part), SMALLEST_START) for name, part in parts.items()}
        self.first: Tensor | None = None  # loss of the first step that this process has seen
        self.skipped = 0  # steps in a row, up to now
        self.told: set[str] = set()

    def saw(self, loss: Tensor) -> None:
        """Note the loss of a step; nothing is read from the device."""
        if self.first is None:
            self.first = loss.detach().clone()

    def took(self, step: Callable[[], Any]) -> bool:
        """Let the optimizer `step`; False where the scaler of 16-mixed skipped it.

        With a scaler the host waits for the device here: what counts steps must know.
        """
        if self.scaler is None:
            step()
            return True
        before = self.scaler._scale.clone()
        step()
        # A scale that has shrunk to 0 cannot shrink any more.
        taken = bool((self.scaler._scale >= before) & (before > 0))
        self.skipped = 0 if taken else self.skipped + 1
        return taken

    def check_losses(self, losses: Iterable[float], where: str) -> None:
        """Raise where a loss, or a sum of losses, is not finite."""
        if any_rank(not all(map(math.isfinite, losses))):
            raise DivergenceError(f"{self.what} diverged {where}: the loss is not finite.")

    def check_skipped(self, where: str, *, most: int | None = None) -> None:
        """Raise where so many steps in a row were skipped that no step can be taken any more.

        `most`: may be skipped; None: `most_skipped` less one. DDP averages the gradients, so all
        processes skip the same steps.
        """
        most = self.most_skipped - 1 if most is None else most
        if self.scaler is not None and self.skipped > most:
            raise DivergenceError(
                f"{self.what} diverged {where}: the last {self.skipped} steps were all "
                f"skipped, because their gradients overflow float16 at every scale down to "
                f"{self.scaler.get_scale():g}."
            )

    def check_epoch(self, loss: float, parts: Mapping[str, nn.Module], where: str) -> str | None:
        """Raise where loss or weights have exploded; return a warning where they soon will."""
        first = 1.0 if self.first is None else abs(self.first.item())
        if any_rank(finite(first) and loss > LARGEST_LOSS * max(first, 1.0)):
            raise DivergenceError(
                f"{self.what} diverged {where}: the loss is {loss:.3g}, at the first step it was "
                f"{first:.3g}."
            )
        for name, part in parts.items():
            start, size = self.start[name], _size(part)
            grown = f"the weights of the {name} are {size:.3g} (root mean square)"
            if any_rank(size > LARGEST_WEIGHTS * start):
                raise DivergenceError(
                    f"{self.what} diverged {where}: {grown}, and below {start:.2g} at the start."
                )
            if size > LARGE_WEIGHTS * start and name not in self.told:
                self.told.add(name)
                return (
                    f"{self.what} may be diverging {where}: {grown}, and below {start:.2g} at the "
                    "start. The learning rate is probably too high."
                )
        return None

    def check_state(self, state: Mapping[str, Any], where: str) -> None:
        """Raise where a tensor of `state` (weights, statistics, moments) is not finite."""
        names = not_finite(state)
        if any_rank(bool(names)):
            raise DivergenceError(
                f"{self.what} diverged {where}: not finite are "
                f"{shortened(names) or 'tensors of another process'}."
            )


def tell_skipped(sink: Sink, what: str, steps: int, skipped: int) -> None:
    """Say, at the end of a training, how many steps the scaler of 16-mixed has skipped."""
    if skipped:
        text = (
            f"{what}: {skipped} of {steps + skipped} steps were skipped, because their gradients "
            "overflowed float16 at the scale of that moment: they count as no steps. A few at the "
            "start are usual"
        )
        sink.event("skipped", {"what": what, "skipped": skipped, "steps": steps, "text": text})


def check_saved(payload: Mapping[str, Any], name: str) -> None:
    """Raise `DivergenceError` where a checkpoint would hold what is not finite."""
    if names := not_finite(payload):
        raise DivergenceError(f"{name} is not written: not finite are {shortened(names)}.")


def explained(
    error: UserError, config: Config, folder: Path, checkpoint: str, keys: str = "finetune"
) -> UserError:
    """Return `error` with the keys to change, what is kept, and the command that resumes.

    `folder` is the run's, `checkpoint` the name of the file that it resumes from, `keys` what those
    of fine-tuning begin with.
    """
    tuning = checkpoint.startswith("finetune")
    remedies = list(_of_tuning(config.finetune, keys) if tuning else _of_pretraining(config))
    precision = config.hardware.precision
    # Where the scaler gave up, float16 is to blame, and comes first: it stands in the command.
    first = 0 if "float16" in str(error) else len(remedies)
    wider = "bf16-mixed" if precision == "16-mixed" else "32-true"
    remedies.insert(first, ("hardware.precision", precision, wider))
    shown = ", ".join(
        f"{key}={_plain(now)}" + (f" (try {_plain(instead)})" if instead != now else "")
        for key, now, instead in remedies
    )
    kept = folder / "checkpoints" / f"{checkpoint}.pt"
    # All that is far from its usual value at once: one that is left would diverge again.
    changed = [
        f"{key}={_plain(instead)}"
        for number, (key, now, instead) in enumerate(remedies)
        if number == 0 or _far(now, instead)
    ]
    return UserError(
        f"{error} Change one or more of: {shown}. Resume with other values (from "
        f"{kept.name if kept.exists() else 'the beginning, as there is no checkpoint yet'}): "
        f"{command(*changed, resume=folder, resume_overrides=True)}"
    )


def _of_pretraining(config: Config) -> Iterator[tuple[str, Any, Any]]:
    """Keys with their values and what to try."""
    optimizer = config.optimizer
    rate = usual_of("optimizer", optimizer.name).get("lr", optimizer.lr)
    yield "optimizer.lr", optimizer.lr, _lower(optimizer.lr, rate)
    yield from _of_decay("optimizer", optimizer.weight_decay)
    ssl = config.ssl
    usual = usual_of("ssl", ssl.name)
    moved = ("temperature",) if config.curriculum.perturbation > 0 else ()  # it has an effect there
    for name in dict.fromkeys((*moved, *ssl.temperatures)):
        now = getattr(ssl, name)
        yield f"ssl.{name}", now, max(now, usual.get(name, now))
    yield "optimizer", optimizer.name, optimizer.instead


def _of_tuning(finetune: FinetuneConfig, keys: str) -> Iterator[tuple[str, Any, Any]]:
    rates = {"lr_encoder": finetune.lr_encoder, "lr_head": finetune.lr_head}
    usual = {**rates, **usual_of("finetune", finetune.name)}
    optimizer = option_of(OptimizerConfig, finetune.optimizer)
    if optimizer.tuning_rate is not None:
        usual |= dict.fromkeys(("lr_encoder", "lr_head"), optimizer.tuning_rate)
    if isinstance(finetune, Maml):
        rates["inner_lr"] = finetune.inner_lr
    # The one furthest above its usual value comes first: it stands in the command.
    for name in sorted(rates, key=lambda name: -rates[name] / usual[name]):
        yield f"{keys}.{name}", rates[name], _lower(rates[name], usual[name])
    yield from _of_decay(keys, finetune.weight_decay)
    yield f"{keys}.optimizer", finetune.optimizer, optimizer.instead_in_tuning


def _of_decay(section: str, decay: float | None) -> Iterator[tuple[str, Any, Any]]:
    """The weight decay where it is to blame: a step takes it times the rate off every weight."""
    if decay is not None and decay > LARGEST_DECAY:
        yield f"{section}.weight_decay", decay, USUAL_DECAY


def _far(now: Any, instead: Any) -> bool:
    """Whether a value is more than ten times above or below the one to try."""
    if not (isinstance(now, float) and isinstance(instead, float)):
        return False
    return instead * 10 < now or now * 10 < instead


def _lower(rate: float, usual: float) -> float:
    return usual if rate > usual else rate / 10


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(part: nn.Module) -> float:
    """Root mean square of the weights that are trained; 0 where there are none."""
    weights = [p.detach() for p in part.parameters() if p.requires_grad]
    count = sum(weight.numel() for weight in weights)
    if not count:
        return 0.0
    # Norms of norms do not overflow where squares would.
    norms = torch.stack([torch.linalg.vector_norm(weight.double()) for weight in weights])
    return float(torch.linalg.vector_norm(norms)) / math.sqrt(count)
