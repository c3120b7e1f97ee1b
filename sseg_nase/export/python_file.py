"""One Python file with everything in it, for whoever has NumPy and nothing else."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
import zlib
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sseg_nase.errors import UserError
from sseg_nase.export import onnx_file, runner
from sseg_nase.export.formats import register
from sseg_nase.export.graph import BATCHES, check_parity, given, random_images
from sseg_nase.export.subject import Subject

LINE = 96  # characters of weights


@register("python", ".py")
def write(subject: Subject, path: Path, threads: int) -> dict[str, Any]:
    """Write `runner.py` with the graph and its weights behind it, and compare it with torch."""
    nodes, weights = onnx_file.taken_apart(subject)
    if unknown := sorted({node[0] for node in nodes} - set(runner._OPERATIONS)):
        raise UserError(
            f"export.formats=python: the network has operations that it does not know "
            f"({', '.join(unknown)}); take onnx or pt2."
        )
    path.write_text(_source(subject, nodes, weights), encoding="utf-8")
    module = imported(path)
    found = {
        batch: module.embed(given(subject.metadata, random_images(subject.metadata, batch)))
        for batch in BATCHES
    }
    return {"difference": check_parity("python", found, subject)}


def imported(path: Path) -> ModuleType:
    """The module in a file, which leaves no trace of itself."""
    spec = importlib.util.spec_from_file_location("sseg_nase_exported", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def _source(subject: Subject, nodes: list[Any], weights: dict[str, np.ndarray]) -> str:
    template = Path(runner.__file__).read_text(encoding="utf-8")
    about = {
        "metadata": asdict(subject.metadata),
        "nodes": nodes,
        "weights": [
            [name, array.dtype.str[1:], list(array.shape)] for name, array in weights.items()
        ],
    }
    raw = b"".join(
        np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        for array in weights.values()
    )
    packed = base64.b85encode(zlib.compress(raw, 6)).decode("ascii")
    lines = [packed[start : start + LINE] for start in range(0, len(packed), LINE)]
    return (
        f"{template}\n_GRAPH = {json.dumps(about)!r}\n_PACKED = (\n"
        + "\n".join(f'    "{line}"' for line in lines)
        + "\n)\nMETADATA, _NODES, _WEIGHTS = _unpacked(_GRAPH, _PACKED)\n"
        + '\nif __name__ == "__main__":\n    _main()\n'
    )
