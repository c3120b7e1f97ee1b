"""A promoted candidate resumes from its own checkpoint: its job resumes a copy of the run before.

The run before stays as it is, with its results. The copy is a run of its own; its learning rate
follows the schedule of all its epochs from where they had got to.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sseg_nase.files import writing
from sseg_nase.rundir.lock import LOCK
from sseg_nase.rundir.names import EPISODES, MODEL, RESULTS
from sseg_nase.rundir.results import read_results
from sseg_nase.rundir.status import INTERRUPTED, status_of, write_status
from sseg_nase.search.log import Candidate, Cost

# Fidelities of which more is more of the same run. At another resolution, or with other images in
# an epoch, it is another run.
GOES_ON = ("epochs", "episodes")
# What a resumed run makes again. Fine-tuning begins again with the network that is longer
# trained, and what is delivered of it would be that of the run before.
LEFT = (LOCK, "report", "export", MODEL, RESULTS, EPISODES, "finetune_*")


def goes_on(before: Mapping[str, Any], candidate: Candidate) -> bool:
    """Whether the candidate is the one `before` (its key and fidelity), with more of `GOES_ON`."""
    less, more = before.get("fidelity") or {}, candidate.fidelity
    return (
        before.get("key") == candidate.key
        and less != more
        and less.keys() == more.keys()
        and all(
            less[name] <= more[name] if name in GOES_ON else less[name] == more[name]
            for name in more
        )
    )


def continued(run: Path) -> Path:
    """Return a copy of the finished `run` beside it, which says of itself that it can be resumed.

    Whole or not there at all under the name of a run. Raises `StorageError` where there is no room.
    """
    name = f"{run.name.rsplit('-', 1)[0]}-{secrets.token_hex(3)}"
    path, half = run.with_name(name), run.with_name(f".{name}.half")
    with writing(run.parent):
        shutil.copytree(run, half, ignore=shutil.ignore_patterns(*LEFT))
        write_status(half, {**status_of(run), "status": INTERRUPTED})
        os.replace(half, path)
    return path


def spent_before(run: Path) -> dict[str, float]:
    """Return the images and the macs of the pretraining of a finished run, which are not repeated.

    Raises `ValueError` where its results do not say.
    """
    results = read_results(run) or {}
    try:
        macs, images = results["training_macs"], results["images_seen"]
        return {
            "images": float(images["synthetic"] + images["real_unlabeled"]),
            "training_macs": float(macs["total"] - sum(_of_tuning(macs))),
        }
    except (KeyError, TypeError) as error:
        raise ValueError(f"{run}/results.json does not say what the training took") from error


def _of_tuning(macs: Mapping[str, int]) -> list[int]:
    """Of every stage of fine-tuning: they are named finetune, or finetune_METHOD of a sequence."""
    return [spent for part, spent in macs.items() if part.startswith("finetune")]


def less(cost: Cost, before: Mapping[str, float] | None) -> Cost:
    """Return what was spent behind `before`; seconds are those of the last process already."""
    if before is None:
        return cost
    return Cost(
        cost.seconds, cost.images - before["images"], cost.training_macs - before["training_macs"]
    )
