"""What the files of a run are called."""

from __future__ import annotations

from pathlib import Path

CONFIG, OVERRIDES, STATUS = "config.yaml", "overrides.yaml", "status.json"
DATA, ENVIRONMENT = "data.json", "environment.json"
EVENTS, MUTATIONS = "events.jsonl", "mutations.jsonl"
ARCHITECTURE, RESULTS = "architecture.json", "results.json"
EPISODES, EMBEDDINGS = "episodes.npz", "embeddings.npz"
CONFUSION, PER_CLASS = "confusion.npz", "per_class.csv"
SEARCH = "search.json"  # what tells the folder of a search
CANDIDATES = "candidates.jsonl"  # the log of a search
SEARCHES = "searches"  # the folder of all searches
CHECKPOINTS = "checkpoints"
MODEL = "model"  # the folder of a run's network as a model of MLflow


def checkpoint_of(run: Path, name: str) -> Path:
    """Return where a run keeps a checkpoint: `last`, `best`, `finetune_last`, `finetune_best`."""
    return run / CHECKPOINTS / f"{name}.pt"


def is_run(folder: Path) -> bool:
    """Tell whether a folder is a run's, by what it holds."""
    said = any((folder / name).is_file() for name in (STATUS, RESULTS))
    return said and (folder / CONFIG).is_file()
