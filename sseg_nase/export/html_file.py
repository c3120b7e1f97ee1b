"""One HTML file that is taught and asked in a browser, offline: page, program and weights."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sseg_nase.errors import UserError
from sseg_nase.export import onnx_file, runner
from sseg_nase.export.formats import register
from sseg_nase.export.graph import (
    BATCHES,
    check_parity,
    expected,
    exporting,
    given,
    random_images,
)
from sseg_nase.export.subject import Subject
from sseg_nase.runtime.metadata import Metadata

PAGE = Path(__file__).with_name("page")
SCRIPTS = ("network.js", "pixels.js", "rule.js", "page.js")
FARTHEST = 2**31 - 1  # what int64 has beyond, such as the end of a slice, stands for "to the end"
# The page's network.js has the operations of runner.py, but for these of their attributes.
_NOT_THERE = {
    "Pad": lambda attributes: attributes.get("mode", "constant") != "constant",
}


@register("html", ".html")
def write(subject: Subject, path: Path, threads: int) -> dict[str, Any]:
    """Put the page together, and compare the graph in it, run by `runner.py`, with torch.

    The page compares what its browser computes of one image when it is opened.
    """
    nodes, weights = onnx_file.taken_apart(subject)
    if unknown := sorted({node[0] for node in nodes if not _known(node)}):
        raise UserError(
            f"export.formats=html: the network has operations that the page does not know "
            f"({', '.join(unknown)}); take onnx or pt2."
        )
    with exporting("html"):
        found = {
            batch: runner._run(
                nodes, weights, given(subject.metadata, random_images(subject.metadata, batch))
            )
            for batch in BATCHES
        }
    difference = check_parity("html", found, subject)
    path.write_text(_page(subject, nodes, weights), encoding="utf-8")
    return {"difference": difference}


def pattern(metadata: Metadata) -> np.ndarray:
    """uint8 `[1, S, S, C]`: the image on which the page tests its browser."""
    count = metadata.image_size**2 * metadata.channels
    n = np.arange(count, dtype=np.int64)
    shape = (1, metadata.image_size, metadata.image_size, metadata.channels)
    return ((n * n + 7 * n) % 251).astype(np.uint8).reshape(shape)


def _known(node: list[Any]) -> bool:
    operation, _, _, attributes = node
    refused = _NOT_THERE.get(operation)
    return operation in runner._OPERATIONS and not (refused and refused(attributes))


def _page(subject: Subject, nodes: list[Any], weights: dict[str, np.ndarray]) -> str:
    floats = [array for array in weights.values() if array.dtype.kind == "f"]
    model = {
        "metadata": asdict(subject.metadata),
        "nodes": nodes,
        "constants": [
            [name, list(array.shape), None if array.dtype.kind == "f" else _whole(array)]
            for name, array in weights.items()
        ],
        "expected": expected(subject, pattern(subject.metadata))[0].tolist(),
    }
    packed = b"".join(np.ascontiguousarray(array, "<f4").tobytes() for array in floats)
    style = _file("page.css")
    script = '(() => {\n"use strict";\n' + "\n".join(map(_file, SCRIPTS)) + "})();\n"
    run = subject.metadata.about.get("run")
    page = _file("page.html")
    for name, text in {
        "policy": _policy(script, style),
        "title": html.escape(f"Teach it by a few photos{f' · {run}' if run else ''}"),
        "style": style,
        "script": script,
        "model": json.dumps(model, allow_nan=False).replace("<", "\\u003c"),
        "weights": base64.b64encode(packed).decode("ascii"),
    }.items():
        before, _, after = page.partition(f"{{{{{name}}}}}")
        page = before + text + after
    return page


def _policy(script: str, style: str) -> str:
    """What the page may load: itself. Its photos cannot leave it."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")

    return (
        f"default-src 'none'; script-src 'sha256-{digest(script)}'; "
        f"style-src 'sha256-{digest(style)}'; img-src data:; form-action 'none'; base-uri 'none'"
    )


def _file(name: str) -> str:
    return (PAGE / name).read_text(encoding="utf-8")


def _whole(array: np.ndarray) -> list[int]:
    found: list[int] = array.reshape(-1).clip(-FARTHEST, FARTHEST).astype(np.int64).tolist()
    return found
