"""torch.export's own file: for programs that have torch and not this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sseg_nase.export.formats import register
from sseg_nase.export.graph import (
    BATCHES,
    LARGEST_BATCH,
    check_parity,
    example,
    exporting,
    given,
    module_of,
    random_images,
)
from sseg_nase.export.subject import Subject
from sseg_nase.runtime.metadata import KEY


@register("pt2", ".pt2")
def write(subject: Subject, path: Path, threads: int) -> dict[str, Any]:
    """Write the exported program with its metadata beside it in the file, and compare it."""
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    with exporting("pt2"):
        program = torch.export.export(
            module_of(subject), (example(subject.metadata),), dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, str(path), extra_files={KEY: subject.metadata.to_json()})
        module = torch.export.load(str(path)).module()
        found = {}
        for count in BATCHES:
            images = given(subject.metadata, random_images(subject.metadata, count))
            found[count] = np.asarray(module(torch.from_numpy(images)).float())
    return {"difference": check_parity("pt2", found, subject)}
