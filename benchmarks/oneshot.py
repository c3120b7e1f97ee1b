"""One-shot strategies on real images, and what their cells are worth by NAS-Bench-201.

    python benchmarks/oneshot.py IMAGES TABLE.csv.xz [--only NAME ...] [--seeds N] [--out FOLDER]
        [--width C] [--cells N] [--images N] [--epochs N] [--set KEY=VALUE ...]

IMAGES has a folder of images per class, such as `cifar10/train`; no other split is read. A supernet
of the space of NAS-Bench-201 is trained by each strategy with each seed; the cell that is derived
is looked up in the table, which no search has seen: the mean test accuracy of its trainings over
200 epochs, and its rank among all 15,625 cells. Beside them stand the cell of skip connections
alone, a random one, and the one with the most parameters. Every search is kept in
FOLDER/oneshot.json as it ends, so that the command goes on where it was stopped;
FOLDER/oneshot.md is the table of them all.

The defaults take about a minute a search on one core: 8 channels, one cell a stage, 2,000 images of
16 px, 10 epochs. `--set` changes a key of all strategies that have it, such as
`--set max_skips=2 order=first`; its rows stand beside the others, as do those of another size.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from PIL import Image

from sseg_nase.config.compose import load
from sseg_nase.config.schema import ONE_SHOT
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.files import write_json, write_text
from sseg_nase.oneshot.images import halves
from sseg_nase.oneshot.objectives import Labels, Objective, SelfSupervised
from sseg_nase.oneshot.training import OneShotTraining
from sseg_nase.search import Table
from sseg_nase.spaces import NB201
from sseg_nase.spaces.nb201 import NAMES

TEST, COLUMN = "test accuracy, 200 epochs", "c10_test200"
WHAT = {
    "darts first": ("darts", {"order": "first"}),
    "darts second": ("darts", {"order": "second"}),
    **{name: (name, {}) for name in ONE_SHOT if name != "darts"},
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How small the searches are: channels, cells a stage, images of train, their side, epochs."""

    width: int = 8
    cells: int = 1
    images: int = 2_000
    side: int = 16
    epochs: int = 10


def store_of(folder: Path, size: Size) -> ImageStore:
    """The first images of every class, in the order of their names, as many in all as asked."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    if not classes:
        raise UserError(f"{folder} has no folders of images, one per class.")
    each = -(-size.images // len(classes))
    pixels, labels = [], []
    for label, path in enumerate(classes):
        for file in sorted(path.iterdir())[:each]:
            with Image.open(file) as image:
                small = image.convert("RGB").resize((size.side, size.side), Image.Resampling.BOX)
                pixels.append(np.asarray(small))
            labels.append(label)
    return ImageStore.from_arrays(np.stack(pixels), np.array(labels), [p.name for p in classes])


def options_of(name: str, size: Size, given: Mapping[str, Any], images: int) -> Any:
    """The options of a strategy at this size: its usual ones, but for the epochs."""
    strategy, own = WHAT[name]
    lines = [f"strategy={strategy}"]
    options = load(lines).strategy
    batch = min(options.batch_size, images // 8)
    values = {"epochs": size.epochs, "batch_size": batch, **own}
    if hasattr(options, "warmup_epochs"):  # the same share of the epochs
        values["warmup_epochs"] = options.warmup_epochs * size.epochs // options.epochs
    if hasattr(options, "alpha_interval"):
        values["alpha_interval"] = 1  # so few steps would never move a gate
    known = {field.name for field in dataclasses.fields(options)}
    values |= {key: value for key, value in given.items() if key in known}
    lines += [f"strategy.{key}={json.dumps(value)}" for key, value in values.items()]
    return load(lines).strategy


def searched(
    name: str, seed: int, store: ImageStore, size: Size, given: Mapping[str, Any]
) -> dict[str, Any]:
    """One search: the cell, its skip connections and those of every epoch, and what it took."""
    began = time.perf_counter()
    options = options_of(name, size, given, len(store))
    config, device = load(["ssl=barlow_twins"]), torch.device("cpu")
    objective: Objective = Labels(len(store.class_names), config.views, size.side)
    if options.objective == "ssl":
        objective = SelfSupervised(config.ssl, config.views, size.side, options.parts)
    space = NB201(width=size.width, cells=size.cells, resolution=size.side, counts="network")
    parts = halves(store, images=None, batch_size=options.batch_size, seed=seed, device=device)
    training = OneShotTraining(space, options, objective, parts, seed, device)
    while training.more:
        training.train_epoch()
        training.close_epoch()
    assert training.ended is not None
    answer = training.records[training.ended.record]
    firsts = [record for record in training.records if record["images"]]
    return {
        "cell": space.to_string(training.point(answer["picks"])),
        "skips": int(answer["scores"]["skips"]),
        "skips by epoch": [int(record["scores"]["skips"]) for record in firsts],
        "scores": answer["scores"],
        "stopped": training.ended.why,
        "seconds": time.perf_counter() - began,
    }


class Worth:
    """What cells are worth by the table."""

    def __init__(self, path: Path) -> None:
        self.space = NB201()
        self.tests = Table(path, self.space, "arch", self.space.from_string).column(COLUMN)
        self.ordered = np.sort(np.array(list(self.tests.values())))[::-1]

    def of(self, cell: str) -> tuple[float, int]:
        """Test accuracy, and the rank: 1 is the best."""
        test = self.tests[self.space.to_json(self.space.from_string(cell))]
        return test, 1 + int((self.ordered > test).sum())

    def lines(self) -> dict[str, tuple[float, float]]:
        """What needs no search: accuracy and rank."""
        uniform = {op: dict.fromkeys(NAMES, op) for op in ("skip_connect", "nor_conv_3x3")}
        cells = {op: self.of(self.space.to_string(point)) for op, point in uniform.items()}
        values = np.array(list(self.tests.values()))
        ranks = [1 + int((self.ordered > value).sum()) for value in values]
        return {
            "skip connections alone": cells["skip_connect"],
            "a random cell": (float(values.mean()), float(np.mean(ranks))),
            "the most parameters": cells["nor_conv_3x3"],
        }


def table_of(results: Mapping[str, Mapping[str, Any]], worth: Worth) -> str:
    """The table: a row per strategy, means over its seeds."""
    rows = [
        f"| search | seeds | {TEST} | rank of {len(worth.tests):,} | skip connections | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_seed in results.items():
        found = [worth.of(one["cell"]) for one in by_seed.values()]
        tests, ranks = np.array(found, dtype=float).T
        spread = f" ± {tests.std(ddof=1):.2f}" if len(tests) > 1 else ""
        skips, seconds = (
            np.mean([one[key] for one in by_seed.values()]) for key in ("skips", "seconds")
        )
        rows.append(
            f"| {name} | {len(tests)} | {tests.mean():.2f}{spread} | "
            f"{', '.join(f'{rank:,.0f}' for rank in ranks)} | {skips:.1f} | {seconds:.0f} |"
        )
    for name, (test, rank) in worth.lines().items():
        rows.append(f"| {name} | | {test:.2f} | {rank:,.0f} | | |")
    return "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Search with what is chosen, and keep what came out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path, help="a folder with a folder of images per class")
    parser.add_argument("table", type=Path, help="nasbench201.csv.xz, or another csv of cells")
    parser.add_argument("--only", nargs="+", default=[*WHAT], choices=[*WHAT], metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "bench")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="given")
    for field in dataclasses.fields(Size):
        parser.add_argument(
            f"--{field.name}", type=int, default=field.default, dest=f"size_{field.name}"
        )
    asked = parser.parse_args(arguments)
    size = Size(**{f.name: getattr(asked, f"size_{f.name}") for f in dataclasses.fields(Size)})
    pairs = (each.partition("=") for each in asked.given)
    given = {key: _value(value) for key, _, value in pairs}
    others = [
        f"{f.name}={value}"
        for f in dataclasses.fields(Size)
        if (value := getattr(size, f.name)) != f.default
    ]
    about = "".join(f" {each}" for each in [*others, *asked.given])
    kept = asked.out / "oneshot.json"
    try:
        worth, store = Worth(asked.table), store_of(asked.images, size)
        for seed in range(asked.seeds):
            for name in asked.only:
                told = json.loads(kept.read_text()) if kept.exists() else {}
                row = told.setdefault(f"{name}{about}", {})
                if str(seed) in row:
                    continue
                row[str(seed)] = searched(name, seed, store, size, given)
                write_json(kept, told)
                write_text(asked.out / "oneshot.md", table_of(told, worth))
                test, rank = worth.of(row[str(seed)]["cell"])
                print(f"{name}{about}, seed {seed}: {test:.2f} %, rank {rank:,}", flush=True)
    except UserError as error:
        print(error)
        return 2
    return 0


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    raise SystemExit(main())
