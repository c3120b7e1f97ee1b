"""The last stages of a run: evaluate, measure costs, write the files of the results, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sseg_nase.config.commands import command
from sseg_nase.config.fingerprint import fingerprint
from sseg_nase.config.groups.evaluation import CLASSIFIER
from sseg_nase.config.groups.tracking import InStore
from sseg_nase.data.store import ImageStore
from sseg_nase.files import storage_error
from sseg_nase.finite import figure
from sseg_nase.nets.backbone import Backbone
from sseg_nase.rundir.architecture import write_architecture
from sseg_nase.rundir.confusion import write_confusions
from sseg_nase.rundir.embeddings import write_embeddings
from sseg_nase.rundir.episodes import write_episodes
from sseg_nase.rundir.names import CHECKPOINTS
from sseg_nase.rundir.results import (
    BEST,
    CLOSED_SECTIONS,
    LAST,
    SECTIONS,
    has_results,
    write_results,
)
from sseg_nase.rundir.status import FINISHED
from sseg_nase.stages import identity
from sseg_nase.stages.classifying import is_closed
from sseg_nase.stages.controlling import compared
from sseg_nase.stages.evaluating import (
    Evaluation,
    Task,
    doubted,
    efficiency,
    evaluate,
    evaluate_best,
)
from sseg_nase.stages.running import Run
from sseg_nase.stages.served import write_model
from sseg_nase.stages.setup import Reached, seed_backbone
from sseg_nase.training import checkpoint

# Costs of efficiency in results.json that are metrics, too.
LOGGED = ("params", "macs", "latency_ms_b1", "latency_ms_b64", "peak_memory_mb")


def conclude(
    this: Run,
    reached: Reached,
    tasks: Sequence[Task],
    results: dict[str, Any],
    best: Path | None = None,
    control: Reached | None = None,
) -> None:
    """Evaluate, write the files of the results, `results.json` last, and report.

    `results`: what is known of them before. `best`: the checkpoint of the best network of the run,
    where it has trained one. `control`: what it is compared with, where one was trained.
    """
    backbone = reached.backbone
    sections = CLOSED_SECTIONS if is_closed(this.config) else SECTIONS
    evaluated, results = _evaluated(this, reached, tasks, results, best, control)
    for text in doubted(results):
        this.sink.event("warning", {"text": text})
    with this.stage("efficiency"):
        costs = efficiency(backbone, this.config.dataset.image_size, this.device)
    results = _with_costs(this, reached, results, costs)
    # What counts first: the network chosen by its loss, without labels, where there is one.
    headline = BEST if sections[BEST] in results else LAST
    _tell(this, results, sections, headline, reached.step)
    write_architecture(this.directory, backbone.architecture.to_dict())
    write_episodes(this.directory, {name: each.accuracies for name, each in evaluated.items()})
    write_confusions(this.directory, {name: each.confusions for name, each in evaluated.items()})
    if (shown := evaluated[LAST].embeddings) is not None:
        write_embeddings(this.directory, shown)
    write_results(this.directory, results)
    if isinstance(this.config.tracking, InStore):
        chosen = checkpoint.backbone_of(best) if headline == BEST and best else backbone
        *_, (_, _, examples) = tasks[0].stores()
        keep(this, this.config.tracking, chosen, evaluated[headline], examples)
    if this.config.report.at_end:
        report(this)
    this.summary = results, reached.history


def _evaluated(
    this: Run,
    reached: Reached,
    tasks: Sequence[Task],
    results: dict[str, Any],
    best: Path | None,
    control: Reached | None,
) -> tuple[dict[str, Evaluation], dict[str, Any]]:
    """What the networks of the run are worth, by name, and `results` with a section for each."""
    closed = is_closed(this.config)
    sections = CLOSED_SECTIONS if closed else SECTIONS
    with this.stage("evaluate"):
        evaluated = {LAST: evaluate(tasks, reached, this.device)}
        if closed:
            this.know(tasks)
            results = {**results, **_untrained(this, tasks)}
        if (views := this.config.evaluation.test_views) > 1:
            averaged = evaluate(tasks, reached, this.device, views)
            about = {"views": views, "macs": views * reached.backbone.architecture.macs()}
            results = {**results, sections["views"]: averaged.results, "test_views": about}
        why = None if best is None else checkpoint.unreadable(best)
        if why is not None:
            text = f"{best} {why}: the best network is not evaluated"
            this.sink.event("warning", {"text": text})
        elif best is not None:
            about, evaluated[BEST] = evaluate_best(
                tasks, best, reached.backbone, evaluated[LAST], this.device
            )
            results = {**results, sections[BEST]: evaluated[BEST].results, "best": about}
        if control is not None:
            beside = evaluate(tasks, control, this.device)
            told = compared(control, beside, evaluated[LAST])
            results = {**results, sections["control"]: beside.results, "control": told}
    return evaluated, {sections[LAST]: evaluated[LAST].results, **results}


def _untrained(this: Run, tasks: Sequence[Task]) -> dict[str, Any]:
    """How the network before any training does on a closed set; a classifier it has none."""
    evaluation = this.config.evaluation
    wanted = evaluation.untrained_reference and this.config.task == "pipeline"
    if not wanted or evaluation.name == CLASSIFIER:
        return {}
    seed = Reached(seed_backbone(this.config))
    return {CLOSED_SECTIONS["untrained"]: evaluate(tasks, seed, this.device).results}


def _with_costs(
    this: Run, reached: Reached, results: Mapping[str, Any], costs: Mapping[str, Any]
) -> dict[str, Any]:
    """All of `results.json`: `results` with what the run is, has seen and has cost."""
    spent = None  # where a checkpoint of an older version does not say
    if reached.macs is not None:
        spent = {"total": sum(reached.macs.values()), **_positive(reached.macs)}
    return {
        "schema": 1,
        "fingerprint": fingerprint(this.config),
        "status": FINISHED,
        "seconds": this.seconds,
        "architecture": reached.backbone.architecture.summary(),
        "fewshot": {},
        **results,
        "efficiency": costs,
        "mutations": sum(record["accepted"] for record in reached.history),
        "images_seen": dict(reached.images_seen),
        "training_macs": spent,
        **({"finetuning": list(reached.tuned)} if reached.tuned else {}),
        **({"skipped_steps": skipped} if (skipped := _positive(reached.skipped)) else {}),
        "data": identity.in_results(this.data) | {"doubts": this.overlaps},
    }


def _positive(counts: Mapping[str, int]) -> dict[str, int]:
    return {what: count for what, count in counts.items() if count}


def _tell(
    this: Run,
    results: Mapping[str, Any],
    sections: Mapping[str, str],
    headline: str,
    step: int,
) -> None:
    """Give the tracker the figures of `results`; those of the network `headline` come first."""
    # At step 0, and MLflow draws a bar per run; a run that resumes behind its results adds to them.
    at = step if has_results(this.directory) else 0
    closed = is_closed(this.config)
    parts = ("accuracy", "ci95", *(("precision", "recall", "f1", "auc") if closed else ()))
    for group in (sections[name] for name in (LAST, BEST, "control")):
        for key, value in results.get(group, {}).items():
            known = [part for part in parts if value[part] is not None]
            figures = {f"{group}/{key}/{part}": value[part] for part in known}
            figures |= {f"{group}/{key}/top{k}": share for k, share in value["top_k"].items()}
            this.sink.metrics(figures, at)
    size = results["best"]["params"] if headline == BEST else results["architecture"]["params"]
    first = results[sections[headline]]
    figures = {f"headline/{key}": one["accuracy"] for key, one in first.items()}
    this.sink.metrics({**figures, "headline/params": float(size)}, at)
    costs, spent = results["efficiency"], results["training_macs"]
    measured = {key: value for key in LOGGED if (value := figure(costs[key])) is not None}
    measured |= {} if spent is None else {"training_macs": float(spent["total"])}
    this.sink.metrics({f"efficiency/{key}": value for key, value in measured.items()}, at)


def keep(
    this: Run, tracking: InStore, backbone: Backbone, evaluated: Evaluation, examples: ImageStore
) -> None:
    """Write the network that the results are headed by, which the tracker takes when the run ends.

    `examples` of images go with it; the tracker gets the checkpoints, too. A run that has its
    results loses nothing where that fails.
    """
    if tracking.model:
        try:
            write_model(
                this.directory, this.config, backbone, evaluated.mean, examples, this.sink.run_id
            )
        except Exception as error:
            this.warn(f"tracking.model=true: the model is not written: {error}")
    if tracking.checkpoints:
        for path in sorted((this.directory / CHECKPOINTS).glob("*.pt")):
            this.sink.artifact(path, CHECKPOINTS)


def report(this: Run) -> None:
    """Write the report of a run that has its results. It never costs the run anything but time."""
    from sseg_nase.reporting.run_report import NAME, write_report  # here, because of Matplotlib

    # From here on the run is finished, whatever comes: the report says so, too.
    this.place.write_status(FINISHED, undelivered=not this.sink.delivered)
    again = f"{command(task='report', runs=this.directory)} writes it"
    try:
        with this.stage(NAME):
            files = write_report(this.directory, published=this.config.report.published)
    except KeyboardInterrupt:
        this.warn(f"the report is not written: interrupted; {again}")
        return
    except Exception as error:
        full = storage_error(error, this.directory)
        why = f"{type(error).__name__}: {error}" if full is None else str(full)
        this.warn(f"the report is not written: {why.rstrip('.')}; {again}")
        return
    for path in files:
        folder = path.parent.relative_to(this.directory).as_posix()
        this.sink.artifact(path, folder)
    this.sink.event("message", {"text": f"report: {this.directory / NAME / 'report.html'}"})
