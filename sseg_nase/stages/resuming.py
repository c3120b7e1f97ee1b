"""Where a stopped run resumes: its checkpoints, and what may not have changed since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sseg_nase.config.schema import Config
from sseg_nase.config.sequence import stages_of
from sseg_nase.errors import UserError
from sseg_nase.rundir.names import checkpoint_of
from sseg_nase.stages.finetuning import stage_reached
from sseg_nase.stages.running import Run
from sseg_nase.training import checkpoint


def check_epochs(config: Config) -> None:
    """Refuse to resume a run for fewer epochs than it has done: they cannot be undone.

    Before anything of the run is touched. Without `resume_overrides` the epochs are as they were.
    """
    if not config.resume or not config.resume_overrides:
        return
    folder = Path(config.resume).expanduser()
    for file in ("last", "finetune_last"):
        path = checkpoint_of(folder, file)
        state = checkpoint.resumable(path) if path.exists() else {}
        progress, key, asked = state, "pretrain.epochs", config.pretrain.epochs
        if file == "finetune_last":
            progress = state.get("finetune", {})
            stage = stage_reached(state or None, config)
            if stage is None:
                continue
            key = f"{stage.keys}.epochs"
            asked = stages_of(config)[stage.number].finetune.epochs
        begun = int(progress.get("epoch", 0)) + bool(progress.get("batch"))
        if begun > asked:
            raise UserError(
                f"{key}={asked}: the run in {config.resume} has trained for {begun} already; take "
                f"{begun} or more, or start a run of its own."
            )


def state_to_resume(this: Run, name: str) -> dict[str, Any] | None:
    """The checkpoint of a resumed run by that name; None where there is none yet."""
    path = checkpoint_of(this.directory, name)
    return checkpoint.resumable(path) if this.place.resumed and path.exists() else None


def tell_where_it_resumes(
    this: Run, state: dict[str, Any] | None, tuning: dict[str, Any] | None
) -> None:
    """Say where a resumed run resumes, given its checkpoints, and what was changed for it."""
    if not this.place.resumed:
        return
    where = "the beginning: there is no checkpoint yet"
    if tuning is not None:
        stage = stage_reached(tuning, this.config)
        training = "fine-tuning" if stage is None else stage.words
        where = f"epoch {tuning['finetune']['epoch'] + 1} of {training}, step {tuning['step']}"
    elif state is not None:
        where = f"epoch {state['epoch'] + 1}, step {state['step']}"
    this.sink.event("message", {"text": f"resumed at {where}"})
    for key, (old, new) in this.place.changes.items():
        text = f"resumed with {key}: {old} -> {new}"
        this.sink.event("warning", {"text": text, "key": key, "old": old, "new": new})
