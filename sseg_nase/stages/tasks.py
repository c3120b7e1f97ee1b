"""What `task=` of a run is done by. Tasks that look at runs on disk are none of these (`cli`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sseg_nase.config.options import filled
from sseg_nase.files import write_json
from sseg_nase.rundir.architecture import write_architecture
from sseg_nase.rundir.names import ARCHITECTURE
from sseg_nase.stages.classifying import check_classifier, tasks_of
from sseg_nase.stages.curriculum_images import TABLE, check_export, export_curriculum
from sseg_nase.stages.drawing import draw_curriculum
from sseg_nase.stages.evaluating import check_head
from sseg_nase.stages.pipeline import pipeline
from sseg_nase.stages.replaying import replayed
from sseg_nase.stages.results import conclude
from sseg_nase.stages.running import Run
from sseg_nase.stages.setup import stored

REPLAY = "replay.json"


def evaluate_checkpoint(this: Run) -> None:
    """Evaluate the network in `checkpoint`, without any training."""
    config = this.config
    reached = stored(Path(filled(config.checkpoint, "checkpoint")), config)
    check_head(reached, config)
    tasks = tasks_of(config)
    check_classifier(reached, config, tasks)
    this.tie(tasks, pretrained=False)
    this.open()
    conclude(this, reached, tasks, {})


def preview_curriculum(this: Run) -> None:
    """Draw a preview picture per level and the difficulty table; write all images where asked."""
    export = None
    if this.config.curriculum.export is not None:
        export = Path(this.config.curriculum.export)
        check_export(export)
    this.open()
    with this.stage("curriculum"):
        rows = draw_curriculum(this.config, this.directory)
    for path in sorted(this.directory.glob("preview_*.png")):
        this.sink.artifact(path, "curriculum")
    this.sink.artifact(this.directory / "difficulty.md", "curriculum")
    for row in rows:
        text = f"{row['level']}: difficulty {row['difficulty']:.4f} over {row['images']} images"
        this.sink.event("message", {"text": text})
    if export is not None:
        with this.stage("export"):
            counts = export_curriculum(this.config, export)
        total, levels = sum(counts.values()), len(counts)
        text = f"{export}: {total:,} images of {levels} levels as PNG, with {TABLE}"
        this.sink.event("message", {"text": text})


def replay_run(this: Run) -> None:
    """Rebuild every architecture of `run` from its log alone, and check it against the records."""
    records, architectures = replayed(Path(filled(this.config.run, "run")))
    this.open()
    with this.stage("replay"):
        lines = [f"seed network: {_sizes(architectures[0].summary())}"]
        for record in records:
            ending = "accepted" if record["accepted"] else "rolled back"
            step = f"mutation {record['index']}: {record['kind']} after epoch {record['epoch'] + 1}"
            lines.append(f"{step}, {_sizes(record['after'])} ({ending})")
        for line in lines:
            this.sink.event("message", {"text": line})
        write_json(this.directory / REPLAY, [a.to_dict() for a in architectures])
        write_architecture(this.directory, architectures[-1].to_dict())
    for name in (REPLAY, ARCHITECTURE):
        this.sink.artifact(this.directory / name, "replay")


def _sizes(counts: Mapping[str, Any]) -> str:
    channels = "-".join(map(str, counts["channels"]))
    return f"channels {channels}, params {counts['params']:,}, macs {counts['macs']:,}"


TASKS: Mapping[str, Callable[[Run], None]] = {
    "pipeline": pipeline,
    "evaluate": evaluate_checkpoint,
    "curriculum": preview_curriculum,
    "replay": replay_run,
}
