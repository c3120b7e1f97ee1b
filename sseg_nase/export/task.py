"""`task=export` and `task=predict`: what they do from their keys to their last line."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from sseg_nase.config.options import filled
from sseg_nase.config.schema import Config
from sseg_nase.errors import DONE
from sseg_nase.export import html_file, onnx_file, onnx_int8, pt2, python_file
from sseg_nase.export.formats import FORMATS
from sseg_nase.export.origin import run_id, run_of
from sseg_nase.export.predict import predict
from sseg_nase.export.subject import Subject, prepared
from sseg_nase.files import in_bytes, read_json, write_json, writing
from sseg_nase.finite import finite
from sseg_nase.hardware.profiles import cores
from sseg_nase.home import expanded
from sseg_nase.provenance.environment import processor
from sseg_nase.runtime.embedder import onnxruntime
from sseg_nase.tracking.delivery import attached
from sseg_nase.version import __version__

NAME = "network"
RESULTS = "export.json"
SCHEMA = 1
FORMS = (html_file, onnx_file, onnx_int8, pt2, python_file)  # each of them registers itself
__all__ = ["FORMATS", "FORMS", "TASKS", "export", "predict"]

Say = Callable[[str], None]


def export(config: Config, overrides: Sequence[str], say: Say) -> int:
    """Write the network of `config.checkpoint` in `config.export.formats`; return the exit code.

    All files appear together, when every one is written and checked. Raises `UserError`.
    """
    options = config.export
    if set(options.formats) - {"pt2"}:
        onnx_file.package()  # said before the network is evaluated, which may take minutes
        onnxruntime()
    output = _folder(config)
    threads = config.hardware.threads or cores()
    torch.set_num_threads(threads)
    fresh = not output.exists()
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=output, prefix=".export.", suffix=".tmp"))
    try:
        subject = prepared(config, overrides)
        with writing(output):
            found = {name: _written(name, subject, work, threads) for name in options.formats}
            if options.keep == "fastest":
                found, slower = _fastest(found, say)
                (output / slower).unlink(missing_ok=True)  # of an earlier export
            for figures in found.values():
                file = work / figures["file"]
                file.chmod(0o666 & ~_umask())
                os.replace(file, output / figures["file"])
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if fresh:
            with suppress(OSError):
                output.rmdir()  # where nothing was written
    write_json(output / RESULTS, _results(output, subject, found))
    for key, one in subject.metadata.about["accuracy"].items():
        over = "images" if "images" in one else "episodes"
        print(f"{key}: {one['accuracy']:.2f} ± {one['ci95']:.2f} %, {one[over]:,} {over}")
    for figures in found.values():
        print(f"{output / figures['file']}: {line(figures)}", flush=True)
    _hand_over(config, output, found, say)
    return DONE


def _hand_over(config: Config, output: Path, found: Mapping[str, dict[str, Any]], say: Say) -> None:
    """Attach the files, and what was measured of them, to the MLflow run of the network's run."""
    given = filled(config.checkpoint, "checkpoint")
    run = run_of(expanded("checkpoint", given).absolute())
    if run is None or run_id(run) is None:
        return
    names = [RESULTS, *(figures["file"] for figures in found.values())]
    placed = [(output / name, "export") for name in names]
    measured = {f"export/{name}/{key}": v for name, one in found.items() for key, v in _flat(one)}
    say(f"MLflow: {attached(run, placed, config.tracking, output, measured)}")


def _flat(figures: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers among the figures of a file; of an accuracy's difference the mean."""
    for key, value in figures.items():
        if finite(value):
            yield key, float(value)
    for key, one in figures.get("accuracy_difference", {}).items():
        yield f"accuracy_difference/{key}", float(one["mean"])


def line(figures: Mapping[str, Any]) -> str:
    """What is said of one file: its size, how exact and how fast it is."""
    said = [in_bytes(figures["bytes"])]
    if (ratio := figures.get("size_ratio")) is not None:
        said.append(f"{ratio:.2f} of float32")
    if (difference := figures.get("difference")) is not None:
        said.append(f"differs from torch by {difference:.0e} of the largest feature")
    for key, one in figures.get("accuracy_difference", {}).items():
        said.append(f"{one['mean']:+.2f} ± {one['ci95']:.2f} points on {key}")
    if (latency := figures.get("latency_ms_b1")) is not None:
        threads = "1 thread" if figures["threads"] == 1 else f"{figures['threads']} threads"
        said.append(
            f"{latency:.3g} ms an image, {figures['latency_ms_b64']:.3g} ms for 64 ({threads})"
        )
    if (slower := figures.get("latency_ratio")) is not None:
        said.append(f"{slower:.2f} of the time of float32")
    return ", ".join(said)


def _folder(config: Config) -> Path:
    if config.export.output is not None:
        return expanded("export.output", config.export.output).absolute()
    path = expanded("checkpoint", filled(config.checkpoint, "checkpoint")).absolute()
    run = run_of(path)
    return (run or (path if path.is_dir() else path.parent)) / "export"


def _written(name: str, subject: Subject, work: Path, threads: int) -> dict[str, Any]:
    form = FORMATS[name]
    path = work / f"{NAME}{form.suffix}"
    figures = form.write(subject, path, threads)
    return {
        "format": name,
        "file": path.name,
        "bytes": path.stat().st_size,
        "weights": subject.metadata.weights,
        **figures,
    }


def _fastest(found: dict[str, dict[str, Any]], say: Say) -> tuple[dict[str, dict[str, Any]], str]:
    """Without the slower of onnx and onnx_int8, for one image; and that one's file."""
    rivals = sorted(("onnx", "onnx_int8"), key=lambda name: float(found[name]["latency_ms_b1"]))
    times = [found[name]["latency_ms_b1"] for name in rivals]
    say(f"{rivals[0]} is kept: {times[0]:.3g} ms an image, {rivals[1]} {times[1]:.3g} ms")
    kept = {name: figures for name, figures in found.items() if name != rivals[1]}
    return kept, str(found[rivals[1]]["file"])


def _results(output: Path, subject: Subject, found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What export.json holds: the new files, and those of earlier exports that are still there."""
    if {"onnx", "onnx_int8"} <= set(found):
        for batch in (1, 64):
            key = f"latency_ms_b{batch}"
            ratio = found["onnx_int8"][key] / found["onnx"][key]
            found["onnx_int8"]["latency_ratio" if batch == 1 else "latency_ratio_b64"] = ratio
    earlier = (read_json(output / RESULTS) or {}).get("files")
    kept = {
        name: figures
        for name, figures in (earlier if isinstance(earlier, dict) else {}).items()
        if name in FORMATS and (output / f"{NAME}{FORMATS[name].suffix}").exists()
    }
    return {
        "schema": SCHEMA,
        "version": __version__,
        "network": {
            "image_size": subject.metadata.image_size,
            "channels": subject.metadata.channels,
            "features": subject.metadata.features,
            "normalize": subject.metadata.normalize,
            "metric": subject.metadata.metric,
            "temperature": subject.metadata.temperature,
            "weights": subject.metadata.weights,
            **subject.metadata.about,
        },
        "machine": {
            "processor": processor(),
            "cores": cores(),
            "onnxruntime": _version(),
            "torch": str(torch.__version__),
        },
        "files": {**kept, **found},
    }


def _version() -> str | None:
    try:
        import onnxruntime as runtime
    except ImportError:
        return None
    return str(runtime.__version__)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


TASKS: Mapping[str, Callable[[Config, Sequence[str], Say], int]] = {
    "export": export,
    "predict": predict,
}
