"""Run directories as a run leaves them, without running anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sseg_nase.reporting.aggregate import Entry
from sseg_nase.rundir.episodes import write_episodes
from sseg_nase.statistics import mean_ci95

KEY = "digits/val/5w1s"
METHOD = "prototype/cosine/cl2n"


def accuracies(
    rng: np.random.Generator | np.random.RandomState,
    episodes: np.ndarray,
    mean: float,
    of_seed: float = 0.5,
) -> np.ndarray:
    """Percent `[E]`: what the episodes have in common, the seed's own, and noise; as stored."""
    values = mean + episodes + rng.normal(0, of_seed) + rng.normal(0, 1, len(episodes))
    return np.asarray(values.astype(np.float32), dtype=np.float64)


def record(
    folder: Path,
    last: dict[str, np.ndarray],
    best: dict[str, np.ndarray] | None = None,
    *,
    losses: list[float | None] | None = None,
    evaluation: dict[str, Any] | None = None,
    dataset: dict[str, Any] | None = None,
    transductive: bool = False,
    method: str = METHOD,
    params: int = 1000,
    config: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
) -> Path:
    """Write what reports read of a finished run, and return its directory.

    `config` and `results` are further sections of config.yaml and results.json.
    """
    folder.mkdir(parents=True)

    def group(evaluated: dict[str, np.ndarray]) -> dict[str, Any]:
        found = {}
        for key, values in evaluated.items():
            accuracy, ci95 = mean_ci95(values)
            found[key] = {
                "accuracy": accuracy,
                "ci95": ci95,
                "episodes": len(values),
                "method": method,
                "transductive": transductive,
            }
        return found

    said: dict[str, Any] = {
        "schema": 1,
        "status": "FINISHED",
        "fewshot": group(last),
        "efficiency": {"params": params, "macs": 10 * params, "latency_ms_b1": 0.5},
        "training_macs": {"total": 3_000 * params, "student": 3_000 * params},
    }
    written = {"last": last}
    if best is not None:
        said |= {
            "fewshot_best": group(best),
            "best": {"epoch": 3, "step": 40, "params": params - 1, "macs": 10 * params - 1},
        }
        written["best"] = best
    (folder / "results.json").write_text(json.dumps(said | (results or {})))
    (folder / "status.json").write_text(json.dumps({"status": "FINISHED", "error": None}))
    write_episodes(folder, written)
    whole = {
        "evaluation": {
            "seed": 0,
            "ways": 5,
            "shots": [1, 5],
            "queries": 15,
            "episodes": len(next(iter(last.values()))),
            "split": "val",
            "datasets": ["digits"],
            **(evaluation or {}),
        },
        "dataset": {
            "name": "digits",
            "image_size": 32,
            "root": None,
            "split_by": "classes",
            "split_fractions": [0.5, 0.5, 0.0],
            "split_seed": 0,
            **(dataset or {}),
        },
        **(config or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(whole))
    lines = [{"time": 0.0, "kind": "open", "values": {}}]
    for index, loss in enumerate(losses or []):
        lines.append(
            {"time": 0.0, "kind": "metrics", "step": 10 * index, "values": {"pretrain/loss": loss}}
        )
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def sweep(
    folder: Path,
    means: dict[str, float],
    *,
    seeds: int = 3,
    episodes: int = 100,
    keys: tuple[str, ...] = (KEY,),
    of_seed: float = 0.5,
) -> list[Entry]:
    """Finished runs of every configuration (name to mean accuracy) with `seeds` seeds."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 5, episodes)
    entries = []
    for name, mean in means.items():
        for seed in range(seeds):
            last = {key: accuracies(rng, shared, mean, of_seed) for key in keys}
            best = {key: accuracies(rng, shared, mean - 1, of_seed) for key in keys}
            run = record(folder / f"{name}-{seed}", last, best, losses=[5.0, 3.0 - seed, 4.0])
            entries.append(Entry(name, seed, run))
    return entries
