"""ONNX: the form that most runtimes read, on phones, boards, servers and in browsers."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sseg_nase.errors import UserError
from sseg_nase.export.formats import register
from sseg_nase.export.graph import (
    BATCHES,
    INPUT,
    LARGEST_BATCH,
    OUTPUT,
    check_parity,
    example,
    exporting,
    module_of,
    random_images,
)
from sseg_nase.export.subject import Subject
from sseg_nase.runtime.embedder import OnnxEmbedder, onnxruntime
from sseg_nase.runtime.metadata import KEY

LATENCY_BATCHES = (1, 64)
REPEATS, WARMUP = 15, 3


@register("onnx", ".onnx")
def write(subject: Subject, path: Path, threads: int) -> dict[str, Any]:
    """Write an ONNX file with metadata, and compare it with torch."""
    write_graph(subject, path)
    embedder = OnnxEmbedder(path, threads=threads)
    found = {batch: _at_once(embedder, batch) for batch in BATCHES}
    return {
        "difference": check_parity("onnx", found, subject),
        **latencies(embedder),
        "threads": threads,
    }


def write_graph(subject: Subject, path: Path) -> None:
    """Export through torch's graph to ONNX, check it, and add the metadata."""
    if "onnx" not in subject.graph:
        _export(subject, path)
        subject.graph["onnx"] = path.read_bytes()
    path.write_bytes(subject.graph["onnx"])


def taken_apart(subject: Subject) -> tuple[list[Any], dict[str, np.ndarray]]:
    """The graph's nodes as plain data, and its constants by name.

    A node is [operation, inputs, outputs, attributes], as ONNX has them, in the order of running.
    """
    onnx = package()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        write_graph(subject, path)
        graph = onnx.load(str(path)).graph
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    nodes = []
    for node in graph.node:
        attributes = {
            each.name: _plain(onnx.helper.get_attribute_value(each)) for each in node.attribute
        }
        if node.op_type == "Constant":
            [value] = node.attribute
            array = onnx.helper.get_attribute_value(value)
            is_tensor = value.type == onnx.AttributeProto.TENSOR
            weights[node.output[0]] = (
                onnx.numpy_helper.to_array(array) if is_tensor else np.asarray(array)
            )
            continue
        nodes.append([node.op_type, list(node.input), list(node.output), attributes])
    return nodes, weights


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, int | float | str) else list(value)


def _export(subject: Subject, path: Path) -> None:
    onnx = package()
    onnxruntime()
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    with exporting("onnx"):
        program = torch.onnx.export(
            module_of(subject),
            (example(subject.metadata),),
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=[INPUT],
            output_names=[OUTPUT],
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(str(path))
    model = onnx.load(str(path))
    add_metadata(model, subject, "onnx")
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))


def add_metadata(model: Any, subject: Subject, form: str, **further: Any) -> None:
    """Say in the file what it is, and what was measured of it."""
    metadata = subject.metadata
    about = {**metadata.about, "format": form, **further}
    text = dataclasses.replace(metadata, about=about).to_json()
    package().helper.set_model_props(model, {KEY: text})


def latencies(embedder: OnnxEmbedder) -> dict[str, float]:
    """Median milliseconds in onnxruntime by batch, after passes that are not timed."""
    found = {}
    for batch in LATENCY_BATCHES:
        pixels = random_images(embedder.metadata, batch)
        for _ in range(WARMUP):
            embedder(pixels)
        times = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            embedder(pixels)
            times.append(time.perf_counter() - began)
        found[f"latency_ms_b{batch}"] = 1000 * statistics.median(times)
    return found


def package() -> Any:
    """The module `onnx`. Raises `UserError` where something of the extra is not installed."""
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise UserError(
            f"task=export: {error.name or error} is not installed: pip install 'sseg-nase[export]'"
        ) from error
    return onnx


def _at_once(embedder: OnnxEmbedder, batch: int) -> np.ndarray:
    return embedder(random_images(embedder.metadata, batch))
