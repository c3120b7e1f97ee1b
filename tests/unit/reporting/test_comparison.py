from __future__ import annotations

import csv
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sseg_nase import cli as entry
from sseg_nase.config.conf_files import groups
from sseg_nase.config.options import options_of
from sseg_nase.config.schema import DatasetConfig
from sseg_nase.reporting import figures
from sseg_nase.reporting.comparison import Comparison, Table, compare, records
from sseg_nase.reporting.comparison_tables import (
    CSV_COLUMNS,
    as_csv,
    as_json,
    in_units,
    latex,
    markdown,
)
from sseg_nase.reporting.provenance import LABELS, REGIMES, lineage, provenance, regime_of
from sseg_nase.reporting.published import corresponding, published
from sseg_nase.rundir.episodes import read_episodes
from sseg_nase.statistics import holm, paired_difference
from tests.support.recorded_runs import accuracies, record

GOLDEN = Path(__file__).with_name("comparison.golden.md")
ONE, FIVE = "cifar_fs/val/5w1s", "cifar_fs/val/5w5s"
CONV4 = (64, 64, 64, 64)
UNSEEN, DRAWN, REAL, LABELED = (0, 0, 0), (500, 0, 0), (500, 900, 0), (0, 0, 1200)
PLAIN: dict[str, Any] = {
    "task": "pipeline",
    "seed": 0,
    "ablation": None,
    "checkpoint": None,
    "ssl": {"name": "none", "distillation_weight": 0},
    "pretrain": {"epochs": 3},
    "finetune": {"name": "none", "start": None},
    "evolution": {"enabled": False},
    "sparsity": {"enabled": False},
    "curriculum": {"levels": ["NATURAL"], "progression": False},
    "backbone": {"name": "conv4", "weights": None},
}
SIMCLR = {"ssl": {"name": "simclr"}}
PROTONET = {"finetune": {"name": "prototypical"}}
EUCLIDEAN = "prototype/euclidean/none"


def configured(**given: Any) -> dict[str, Any]:
    """`PLAIN` with the sections and keys that are given."""
    return PLAIN | {
        key: {**PLAIN[key], **value} if isinstance(value, dict) else value
        for key, value in given.items()
    }


def run(
    name: str,
    mean: float = 50.0,
    *,
    seen: tuple[int, int, int] = LABELED,
    given: dict[str, Any] | None = None,
    method: str = EUCLIDEAN,
    channels: tuple[int, ...] = CONV4,
    transductive: bool = False,
    evaluation: dict[str, Any] | None = None,
    keys: tuple[str, ...] = (ONE, FIVE),
    dataset: str = "cifar_fs",
    further: dict[str, Any] | None = None,
    noise: int = 0,
) -> Path:
    """A finished run in runs/x; `mean` is its accuracy at one shot."""
    # The old generator: its numbers are the same in every version of NumPy, as the golden file's.
    shared = np.random.RandomState(0).normal(0, 5, (2, 120))
    rng = np.random.RandomState([len(name), *name.encode(), noise])
    evaluated = {key: accuracies(rng, s, mean + 18 * i, 0) for i, (key, s) in
              enumerate(zip(keys, shared, strict=False))}  # fmt: skip
    sizes = {"params": 113_088, "macs": 14_200_000, "resolution": 32}
    images = dict(zip(("synthetic", "real_unlabeled", "real_labeled"), seen, strict=True))
    return record(
        Path("runs/x") / name,
        evaluated,
        method=method,
        transductive=transductive,
        dataset={"name": dataset},
        evaluation={"datasets": [dataset], **(evaluation or {})},
        config=configured(**(given or {})),
        results={
            "architecture": {"channels": list(channels), **sizes},
            "efficiency": sizes,
            "images_seen": images,
            **(further or {}),
        },
    )


def tables(found: Comparison) -> dict[tuple[str, bool], Table]:
    return {(one.setting.regime, one.setting.transductive): one for one in found.tables}


def best(found: Comparison) -> set[tuple[int, int]]:
    """Run and shots of what is bold."""
    return {
        (row.run, shots)
        for one in found.tables
        for row in one.rows
        for shots, cell in row.cells.items()
        if cell.best
    }


# -- what trained a network ----------------------------------------------------------------------

EVOLVED = {"evolution": {"enabled": True}, "sparsity": {"enabled": True}}
A7 = {
    "ablation": "A7",
    "ssl": {"name": "simclr", "distillation_weight": 0.5},
    "curriculum": {"levels": ["BASIC", "NATURAL"], "progression": True},
    **EVOLVED,
}
NAMES: list[tuple[dict[str, Any], str, str]] = [
    ({}, EUCLIDEAN, "untrained"),
    ({"ablation": "A1"}, "prototype/cosine/cl2n", "untrained (A1)"),
    ({**SIMCLR, "pretrain": {"epochs": 0}}, EUCLIDEAN, "untrained"),
    (SIMCLR, EUCLIDEAN, "SimCLR + nearest prototype"),
    (SIMCLR, "logistic/l2n", "SimCLR + logistic regression"),
    ({**SIMCLR, "ablation": "A2"}, "logistic/l2n", "SimCLR (A2) + logistic regression"),
    (
        {"ssl": {"name": "simclr", "distillation_weight": 0.5}},
        "linear/l2n",
        "SimCLR with distillation + linear fine-tuning",
    ),
    ({"ssl": {"name": "dino"}}, "logistic/l2n", "DINO + logistic regression"),
    ({"ssl": {"name": "prototype_pairs"}}, EUCLIDEAN, "CPN without penalty + nearest prototype"),
    (A7, "prototype/cosine/cl2n", "SSEG-NASE (A7)"),
    (A7, "prototype/cosine/cl2n/8views", "SSEG-NASE (A7), augmented support"),
    (
        A7,
        "sinkhorn/free/none/dirichlet2",
        "SSEG-NASE (A7) + optimal transport, unbalanced queries",
    ),
    ({**A7, "sparsity": {"enabled": False}}, EUCLIDEAN, "SSEG"),  # no A7 any more
    ({**A7, "curriculum": {"levels": ["NATURAL"]}}, EUCLIDEAN, "SSEG-NASE (A7)"),
    ({**A7, "curriculum": {"levels": ["BASIC"]}}, EUCLIDEAN, "SSEG-NASE"),
    ({**EVOLVED, "ssl": {"name": "byol"}}, EUCLIDEAN, "SSEG-NASE with BYOL"),
    ({**SIMCLR, "sparsity": {"enabled": True}}, EUCLIDEAN, "NASE"),
    (PROTONET, EUCLIDEAN, "ProtoNet"),
    (PROTONET, "sinkhorn/uniform/none", "ProtoNet + optimal transport"),
    ({"finetune": {"name": "matching"}}, "matching/none", "MatchingNet"),
    ({"finetune": {"name": "matching"}}, EUCLIDEAN, "MatchingNet + nearest prototype"),
    ({"finetune": {"name": "relation"}}, "relation/none", "RelationNet"),
    ({"finetune": {"name": "maml"}}, "maml/10steps/none", "MAML"),
    ({"finetune": {"name": "r2d2"}}, "ridge/learned/none", "R2D2"),
    ({"finetune": {"name": "linear"}}, "logistic/l2n", "base classifier + logistic regression"),
    ({**SIMCLR, **PROTONET}, EUCLIDEAN, "SimCLR, then ProtoNet"),
    (
        {**PROTONET, "backbone": {"name": "resnet18", "weights": "imagenet"}},
        EUCLIDEAN,
        "weights of imagenet, then ProtoNet",
    ),
]


@pytest.mark.parametrize(("given", "method", "name"), NAMES, ids=[name for *_, name in NAMES])
def test_the_name_of_a_method(given: dict[str, Any], method: str, name: str) -> None:
    run("a", given=given)
    assert provenance(Path("runs/x/a"), {}).evaluated_by(method, "cifar_fs") == name


@pytest.mark.parametrize(
    ("seen", "regime"),
    [
        (UNSEEN, "nothing trained"),
        (DRAWN, "synthetic only"),
        ((0, 900, 0), "unlabeled base"),
        (REAL, "unlabeled base"),
        (LABELED, "base labels"),
        ((500, 900, 1200), "base labels"),
    ],
)
def test_the_regime_follows_from_the_images_seen(seen: tuple[int, int, int], regime: str) -> None:
    (found,) = compare([run("a", given=SIMCLR, seen=seen)]).tables
    assert REGIMES[found.setting.regime] == regime


def test_a_network_of_drawn_images_that_is_centred_on_real_ones_says_so() -> None:
    centred = "prototype/cosine/cl2n"
    found = compare(
        [
            run("a", given=SIMCLR, seen=DRAWN, method=centred),
            run("b", given=SIMCLR, seen=DRAWN, method="prototype/cosine/l2n"),
            run("c", given=SIMCLR, seen=REAL, method=centred),
        ]
    )
    assert [one.setting.regime for one in found.tables] == ["synthetic", "centred", "unlabeled"]


def test_images_that_are_not_of_the_base_are_a_regime_of_their_own() -> None:
    weights = {"backbone": {"name": "resnet18", "weights": "imagenet"}, **PROTONET}
    found = compare([run("a", given=weights), run("b", given=PROTONET)])
    assert [one.setting.regime for one in found.tables] == ["labels", "outside"]
    assert regime_of({}) == "unknown"


def test_a_network_is_followed_to_the_run_that_trained_it() -> None:
    first = run("first", given=SIMCLR, seen=REAL)
    tuned = run("tuned", given={**SIMCLR, "finetune": {"name": "relation", "start": str(first)}})
    file = str(tuned / "checkpoints" / "finetune_best.pt")
    last = run(
        "last",
        given={"task": "evaluate", "checkpoint": file, "backbone": {"name": "evolvable"}},
        method="relation/none",
    )
    configs, unknown = lineage(last)
    assert ([config["finetune"]["name"] for config in configs], unknown) == (
        ["none", "relation", "none"],
        None,
    )
    (row,) = compare([last]).tables[0].rows
    assert (row.method, row.backbone) == ("SimCLR, then RelationNet", "conv4")
    shutil.rmtree(first)
    (row,) = compare([last]).tables[0].rows
    assert row.method == "network of first, then RelationNet"
    shutil.rmtree(tuned)
    (row,) = compare([last]).tables[0].rows
    assert row.method == "network of finetune_best.pt + relation scores"


def test_runs_that_name_each_other_end() -> None:
    for name, other in (("a", "b"), ("b", "a")):
        run(name, given={"finetune": {"name": "matching", "start": f"runs/x/{other}"}})
    configs, _ = lineage(Path("runs/x/a"))
    assert len(configs) == 2


def test_training_on_another_dataset_is_said_and_has_no_published_figure() -> None:
    here = run("here", given=PROTONET)
    there = run("there", given=PROTONET, keys=("minimagenet/val/5w5s",))
    rows = [row for one in compare([here, there]).tables for row in one.rows]
    assert [row.method for row in rows] == ["ProtoNet", "ProtoNet, trained on cifar_fs"]
    assert [row.published is not None for row in rows] == [True, False]


@pytest.mark.parametrize(
    ("backbone", "channels", "shown"),
    [
        ("conv4", CONV4, "conv4"),
        ("conv4", (32, 32, 32, 32), "conv4 (32-32-32-32)"),
        ("evolvable", (16, 32, 64), "evolvable (16-32-64)"),
        ("resnet18", (64, 128, 256, 512), "resnet18"),
        ("resnet12", (64, 160, 320, 640), "resnet12"),
        ("of_old", (1, 2), "of_old"),
    ],
)
def test_channels_are_shown_where_the_name_does_not_tell_them(
    backbone: str, channels: tuple[int, ...], shown: str
) -> None:
    one = run("a", given={"backbone": {"name": backbone}}, channels=channels)
    assert compare([one]).tables[0].rows[0].backbone == shown


# -- tables and tests ----------------------------------------------------------------------------


def test_transductive_ones_and_regimes_have_tables_of_their_own() -> None:
    runs = [
        run("protonet", given=PROTONET),
        run("maml", given={"finetune": {"name": "maml"}}, method="maml/none", transductive=True),
        run("simclr", given=SIMCLR, seen=(0, 900, 0)),
        run("untrained", 30, seen=UNSEEN),
        run("transport", given=SIMCLR, seen=(0, 900, 0), method="sinkhorn", transductive=True),
    ]
    found = compare(runs)
    assert {key: [row.run for row in one.rows] for key, one in tables(found).items()} == {
        ("nothing", False): [4],
        ("unlabeled", False): [3],
        ("labels", False): [1],
        ("unlabeled", True): [5],
        ("labels", True): [2],
    }
    pairs = {(d.run, d.reference) for one in found.tables for d in one.differences}
    assert pairs == {(3, 1), (4, 1), (5, 2)}  # to the first run, but of the same kind
    assert list(tables(found)) == sorted(
        tables(found), key=lambda key: (key[1], list(REGIMES).index(key[0]))
    )


def test_differences_are_those_of_the_paired_test() -> None:
    runs = [run(name, 50 - 0.1 * i, given=PROTONET) for i, name in enumerate("abcd")]
    (found,) = compare(runs).tables
    tested = {}
    for shots, key in ((1, ONE), (5, FIVE)):
        first, *others = (read_episodes(one)["last"][key] for one in runs)
        tested[shots] = [paired_difference(other, first) for other in others]
    family = holm(np.array([one.p_value for plain in tested.values() for one in plain]))
    for shots, adjusted in zip(tested, np.split(family, 2), strict=True):
        plain = tested[shots]
        told = [one for one in found.differences if one.shots == shots]
        assert [(one.run, one.reference, one.episodes) for one in told] == [
            (2, 1, 120), (3, 1, 120), (4, 1, 120)
        ]  # fmt: skip
        for one, slow, p in zip(told, plain, adjusted, strict=True):
            assert (one.mean, one.ci95, one.p, one.p_holm) == pytest.approx((*slow, p))
        assert any(one.p_holm > one.p for one in told)


def test_only_what_is_significantly_the_best_is_bold() -> None:
    clear = [run("a", 50, given=PROTONET), run("b", 53, given=PROTONET)]
    assert best(compare(clear)) == {(2, 1), (2, 5)}
    assert best(compare(clear[:1])) == set()
    close = [*clear, run("c", 53, given=PROTONET, noise=1)]
    found = compare(close)
    assert best(found) == set()  # better than run 1, but not than each other
    gap = paired_difference(*(read_episodes(one)["last"][ONE] for one in close[1:]))
    assert gap.p_value > 0.05


def test_the_pairs_of_a_table_are_one_family() -> None:
    """A pair that is significant alone is not bold: the table has a second list, so p doubles."""
    first = run("first", given=PROTONET)
    for number in range(100):
        other = run(f"other{number}", 50 + 0.02 * number, given=PROTONET)
        sides = [read_episodes(one)["last"] for one in (other, first)]
        p = [paired_difference(*(side[key] for side in sides)).p_value for key in (ONE, FIVE)]
        if 0.026 < min(p) < 0.05 < max(p):
            break
    else:
        pytest.fail("no pair is significant on one list and not in its table")
    assert best(compare([first, other])) == set()


def test_the_adjustment_decides() -> None:
    """A best one whose p over all pairs is 0.05 or more is not bold, though its plain p is less."""
    mean = next(
        mean
        for mean in np.arange(50, 51, 0.02)
        if 0.02
        < paired_difference(
            *(
                read_episodes(run(f"{name}{mean}", m, given=PROTONET, keys=(ONE,)))["last"][ONE]
                for name, m in (("a", 50), ("b", mean))
            )
        ).p_value
        < 0.05
        and mean > 50.1
    )
    runs = [Path(f"runs/x/a{mean}"), Path(f"runs/x/b{mean}")]
    assert best(compare(runs)) in ({(1, 1)}, {(2, 1)})
    more = [run(name, 50, given=PROTONET, keys=(ONE,), noise=i) for i, name in enumerate("cde")]
    assert best(compare([*runs, *more])) == set()


def test_other_episodes_are_not_compared() -> None:
    runs = [
        run("a", 50, given=PROTONET),
        run("b", 60, given=PROTONET, evaluation={"seed": 1}),
        run("c", 50, given=PROTONET, evaluation={"shots": [1]}, keys=(ONE,)),
    ]
    found = compare(runs)
    (one,) = found.tables
    assert {(d.run, d.shots) for d in one.differences} == {(3, 1)}
    assert best(found) == set()
    assert [note for note in found.notes if "run 2" in note] == [
        f"run 2, {key}: it was not evaluated on the episodes of run 1, or they are not known: no "
        "difference."
        for key in (ONE, FIVE)
    ]
    assert one.rows[2].cells.keys() == {1}


def test_a_run_without_episodes_stands_in_the_table_alone() -> None:
    runs = [run("a", 50, given=PROTONET), run("b", 60, given=PROTONET)]
    (runs[1] / "episodes.npz").unlink()
    found = compare(runs)
    assert [row.run for row in found.tables[0].rows] == [1, 2]
    assert found.tables[0].differences == ()
    assert best(found) == set()
    assert any("run 2" in note and "episodes.npz" in note for note in found.notes)


def test_every_dataset_and_number_of_ways_has_a_table() -> None:
    keys = ("digits/val/5w1s", "digits/test/5w1s")
    runs = [
        run("a", given=PROTONET),
        run("b", given=PROTONET, keys=keys, dataset="digits"),
        run("c", given=PROTONET, keys=("cifar_fs/val/10w1s",)),
    ]
    found = [one.setting[:3] for one in compare(runs).tables]
    assert found == [("cifar_fs", "val", 5), ("cifar_fs", "val", 10), ("digits", "test", 5),
                     ("digits", "val", 5)]  # fmt: skip


# -- what is published ---------------------------------------------------------------------------


def test_what_is_published_is_in_order() -> None:
    for one in published():
        assert one.dataset in options_of(DatasetConfig)
        assert one.regime in REGIMES
        assert one.backbone in groups()["backbone"] or not one.ours
        assert 20 < one.accuracy[1] < one.accuracy[5] < 100
        assert one.source
    beside = [
        (name, one.backbone, one.channels, one.dataset) for one in published() for name in one.ours
    ]
    assert len(set(beside)) == len(beside)


def test_published_figures_stand_beside_the_same_method_only() -> None:
    about: dict[str, Any] = {"dataset": "cifar_fs", "regime": LABELS, "transductive": False}
    found = corresponding("ProtoNet", "conv4", CONV4, **about)
    assert found is not None
    assert found.accuracy == {1: 55.5, 5: 72.0}
    others = [
        ("MatchingNet", "conv4", CONV4, about),
        ("ProtoNet", "conv4_wide", CONV4, about),
        ("ProtoNet", "conv4", (32, 32, 32, 32), about),
        ("ProtoNet", "conv4", CONV4, {**about, "dataset": "digits"}),
        ("ProtoNet", "conv4", CONV4, {**about, "regime": "unlabeled"}),
        ("ProtoNet", "conv4", CONV4, {**about, "transductive": True}),
    ]
    for method, backbone, channels, where in others:
        assert corresponding(method, backbone, channels, **where) is None
    simclr = corresponding(
        "SimCLR + logistic regression", "resnet18", (64, 128), dataset="minimagenet",
        regime="unlabeled", transductive=False,
    )  # fmt: skip
    assert simclr is not None


def test_published_only_has_a_block_of_its_own_or_none() -> None:
    one = run("a", given=PROTONET)
    found = compare([one])
    assert {each.dataset for each in found.alone} == {"cifar_fs"}
    assert "ProtoNet" not in {each.method for each in found.alone}
    assert {each.method for each in found.alone} == {
        each.method for each in published() if each.dataset == "cifar_fs"
    } - {"ProtoNet"}
    without = compare([one], with_published=False)
    assert without.alone == ()
    assert without.tables[0].rows[0].published is None
    assert "ublished" not in markdown(without)


# -- files ---------------------------------------------------------------------------------------


def small_case() -> list[Path]:
    reference = {"fewshot_untrained": {ONE: {"accuracy": 31.5}, FIVE: {"accuracy": 42.25}}}
    evolved = {**A7, "backbone": {"name": "evolvable"}}
    return [
        run("protonet", 52, given=PROTONET, further=reference),
        run("relation_net", 49, given={"finetune": {"name": "relation"}}, method="relation/none"),
        run("a7", 45, given=evolved, seen=REAL, method="prototype/cosine/cl2n", channels=(16, 48)),
    ]


def test_the_markdown_of_a_small_case() -> None:
    assert markdown(compare(small_case())) == GOLDEN.read_text(encoding="utf-8")


def test_the_files_agree() -> None:
    found = compare(small_case())
    lines = list(csv.DictReader(io.StringIO(as_csv(found))))
    told = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert tuple(lines[0]) == CSV_COLUMNS
    measured = [line for line in lines if line["run"]]
    assert len(measured) == 6
    for line, told_line in itertools.zip_longest(lines, told["accuracies"]):
        assert {key: "" if value is None else str(value) for key, value in told_line.items()} == {
            key: value for key, value in line.items() if key in told_line
        }
    (first,) = (x for x in told["accuracies"] if x.get("run") == 1 and x["shots"] == 5)
    results = json.loads(Path("runs/x/protonet/results.json").read_text())["fewshot"][FIVE]
    assert first["accuracy"] == results["accuracy"]
    assert (first["flops"], first["published"], first["untrained"]) == (28_400_000, 72.0, 42.25)
    assert [run["folder"] for run in told["runs"]] == [
        "runs/x/protonet", "runs/x/relation_net", "runs/x/a7"
    ]  # fmt: skip
    assert {(d["run"], d["shots"], d["regime"]) for d in told["differences"]} == {
        (2, 1, "labels"), (2, 5, "labels"), (3, 1, "unlabeled"), (3, 5, "unlabeled")
    }  # fmt: skip


def test_the_latex_is_well_formed() -> None:
    text = latex(compare(small_case()))
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 8
    assert text.count("{") == text.count("}")
    assert r"\textbf{" in text
    assert "±" not in text
    for part in text.split(r"\begin{table}")[1:]:
        rows = [line for line in part.splitlines() if line.endswith(r" \\")]
        assert len({line.count(" & ") for line in rows}) == 1
    (caption, *_) = (line for line in text.splitlines() if "caption" in line)
    assert r"cifar\_" in caption
    assert r"95 \% CI" in caption


@pytest.mark.parametrize("alike", [True, False])
def test_a_caption_tells_what_all_its_rows_have_in_common(alike: bool) -> None:
    sizes = {"params": 113_088, "macs": 14_200_000, "resolution": 32 if alike else 84}
    runs = [
        run("a", given=PROTONET, keys=(ONE,)),
        run("b", given=PROTONET, keys=(ONE,), further={"efficiency": sizes}),
    ]
    results = json.loads((runs[1] / "results.json").read_text())
    results["fewshot"][ONE]["episodes"] = 120 if alike else 60
    (runs[1] / "results.json").write_text(json.dumps(results))
    (caption, *_) = (line for line in latex(compare(runs)).splitlines() if "caption" in line)
    assert ("n = 120 episodes" in caption) is alike
    assert ("FLOPs at 32 px" in caption) is alike
    assert alike or "episodes" not in caption


def test_only_what_was_trained_is_shown_before_it_was() -> None:
    before = {"fewshot_untrained": {ONE: {"accuracy": 21.5}}}
    trained = run("a", given=PROTONET, further=before)
    plain = run("b", seen=(0, 0, 0), further=before)
    said = "The same networks before they were trained"
    assert said in markdown(compare([trained]))
    assert "| 21.50 |" in markdown(compare([trained]))
    assert said not in markdown(compare([plain]))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (999, "999"), (1000, "1.00 k"), (23_456, "23.5 k"), (113_088, "113 k"),
        (1_000_000, "1.00 M"), (14_200_000, "14.2 M"), (2_500_000_000, "2.50 G"),
    ],
)  # fmt: skip
def test_numbers_in_units(value: float | None, shown: str) -> None:
    assert in_units(value) == shown


def test_what_is_only_published_is_of_the_test_classes() -> None:
    found = compare([run("a", given=PROTONET)])
    measured = [line for line in records(found) if "run" in line]
    known = [line for line in records(found) if "run" not in line]
    assert {line["split"] for line in measured} == {"val"}
    assert {line["split"] for line in known} == {"test"}
    assert all(line["published"] is not None for line in known)
    assert {line["folder"] for line in measured} == {"runs/x/a"}


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture
def cli(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the program in this process; returns exit code, standard output and error."""

    def invoke(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sseg-nase", *arguments])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # restored afterwards
    monkeypatch.setattr(figures, "figures_of_runs", lambda records: iter(()))  # test_costs draws
    return invoke


def ended(path: Path, status: str) -> Path:
    (path / "status.json").write_text(json.dumps({"status": status, "error": None}))
    return path


Cli = Callable[..., tuple[int, str, str]]


def numbered(shown: str) -> list[str]:
    """The folders in the table of runs."""
    return [line.split("`")[1] for line in shown.splitlines() if "`runs/" in line]


def test_runs_by_name_by_pattern_and_the_last(cli: Cli) -> None:
    for index, one in enumerate(small_case()):
        (one / "events.jsonl").write_text(json.dumps({"time": 1_000 - index}) + "\n")
    ended(run("broken", given=PROTONET), "FAILED")
    code, shown, said = cli("task=report", "runs=runs/x/relation_net,runs/x/protonet")
    assert (code, numbered(shown)) == (0, ["runs/x/relation_net", "runs/x/protonet"])
    (folder,) = Path("runs/reports").iterdir()
    assert str(folder.absolute()) in said
    suffixes = ("md", "html", "csv", "json", "tex")
    names = {f"comparison.{suffix}" for suffix in suffixes} | {"preview.tex"}
    assert {path.name for path in folder.iterdir()} == names
    assert (folder / "comparison.md").read_text() == shown.removesuffix("\n")
    code, shown, said = cli("task=report", "runs=LAST,runs/x/*", "report.output=here")
    assert code == 0
    assert numbered(shown) == ["runs/x/protonet", "runs/x/a7", "runs/x/relation_net"]  # each once
    assert "runs/x/broken is FAILED, not FINISHED: left out" in said
    assert Path("here/comparison.tex").exists()
    several = "runs=[runs/x/a7,runs/x/protonet]"
    code, shown, _ = cli("task=report", several, "report.published=false")
    assert (code, numbered(shown)) == (0, ["runs/x/a7", "runs/x/protonet"])
    assert "ublished" not in shown


MISTAKES = [
    (["task=report", "runs=runs/x/nowhere"], "runs=runs/x/nowhere: there is no such folder"),
    (["task=report", "runs=runs/x"], """For the runs in it write 'runs="runs/x/*"'"""),
    (["task=report", "runs=runs/x/good,empty"], "runs=empty: not the directory of a run"),
    (["task=report", "runs=sweep"], "runs=sweep: this is the directory of a sweep; write sweep="),
    (["task=report", "runs=runs/y/*"], "runs=runs/y/*: nothing matches it"),
    (["task=report", "runs=em*"], "runs=em*: none of the 1 that match is"),
    (["task=report", "runs=runs/x/going,runs/x/drawing"], "runs/x/going is RUNNING, not FINISHED"),
    (["task=report", "runs=runs/x/drawing,runs/x/going"], "runs/x/drawing has evaluated nothing"),
    (["task=report", "runs=LAST", "paths.output_dir=empty"], "there is no finished run in empty"),
    (["task=report", "runs=runs/x/good", "sweep=LAST"], "not together with sweep=LAST"),
    (["task=report", "runs=[]"], "runs=[]: name at least one"),
    (["task=report", "runs=runs/x/good,"], "runs= is empty"),
    (["task=report", "run=runs/x/good"], "A report is of runs=runs/x/good"),
    (["task=report", "report.output=here"], "report.output=here: it has no effect without"),
    (["report.published=false", "report.at_end=false"], "published=false: it has no effect"),
    (["runs=a,b"], "runs=a,b: it has no effect with task=pipeline"),
    (["task=report", "runs=runs/x/good", "report.output=file"], "report.output="),
    (["task=report", "runs=runs/x/good,runs/x/going", "report.output=file"], "report.output="),
    (["-m", "task=report", "runs=a,b"], "it inspects what is on disk and is no job of a sweep"),
]


@pytest.mark.parametrize(("arguments", "said"), MISTAKES, ids=[said for _, said in MISTAKES])
def test_a_mistake_about_runs(cli: Cli, arguments: list[str], said: str) -> None:
    run("good", given=PROTONET)
    ended(run("going", given=PROTONET), "RUNNING")
    (run("drawing") / "results.json").write_text('{"status": "FINISHED"}')
    Path("empty").mkdir()
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_text("{}")
    Path("file").write_text("")
    before = set(Path().rglob("*"))
    code, shown, error = cli(*arguments)
    assert (code, shown) == (2, "")
    assert said in error
    assert "Traceback" not in error
    assert set(Path().rglob("*")) == before


def test_a_comparison_does_without_torch() -> None:
    run("a", given=PROTONET)
    run("b", given=PROTONET)
    program = (
        "import sys\n"
        "sys.argv = ['sseg-nase', 'task=report', 'runs=runs/x/a,runs/x/b']\n"
        "from sseg_nase.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'mlflow', 'sklearn', 'lightning'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    root = str(Path(entry.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
