from __future__ import annotations

import itertools
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

from sseg_nase.reporting.aggregate import (
    COMPARISON_COLUMNS,
    RUN_COLUMNS,
    SUMMARY_COLUMNS,
    Aggregate,
    Entry,
    Evaluated,
    aggregate,
    same_episodes,
)
from sseg_nase.rundir.episodes import read_episodes
from sseg_nase.rundir.results import EpisodeResult
from sseg_nase.statistics import crossed_difference, holm, paired_difference
from tests.support.recorded_runs import KEY, METHOD, accuracies, record, sweep

MEANS = {"A1": 50.0, "A2": 60.0, "A7": 61.0}
KEYS = ("digits/val/5w1s", "digits/val/5w5s")


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    return sweep(tmp_path, MEANS, keys=KEYS)


def rows(table: Any, **wanted: Any) -> list[dict[str, Any]]:
    found = table.to_dict("records")
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


def pairs(found: Aggregate) -> set[tuple[str, str]]:
    return {(row["a"], row["b"]) for row in rows(found.comparisons)}


def test_a_row_per_run_key_and_network(entries: list[Entry]) -> None:
    found = aggregate(entries)
    assert found.notes == ()
    assert tuple(found.runs.columns) == RUN_COLUMNS
    assert len(found.runs) == len(entries) * len(KEYS) * 2
    for entry in entries:
        results = json.loads((entry.run / "results.json").read_text())
        for key in KEYS:
            (last,), (best,) = (
                rows(found.runs, run=str(entry.run), key=key, network=network)
                for network in ("last", "best")
            )
            assert (
                last.items()
                >= {
                    "configuration": entry.configuration,
                    "seed": entry.seed,
                    **results["fewshot"][key],
                    "params": 1000,
                    "macs": 10_000,
                    "latency_ms_b1": 0.5,
                    "training_macs": 3_000_000,
                    "loss_best": 3.0 - entry.seed,
                    "loss_last": 4.0,
                }.items()
            )
            assert best.items() >= {
                **results["fewshot_best"][key], "params": 999, "macs": 9_999
            }.items()  # fmt: skip
            assert math.isnan(best["latency_ms_b1"])  # only the last network is timed


def test_a_summary_row_is_the_mean_over_seeds(entries: list[Entry]) -> None:
    found = aggregate(entries)
    assert tuple(found.summary.columns) == SUMMARY_COLUMNS
    assert len(found.summary) == len(MEANS) * (len(KEYS) * 2 + 2)
    for name, key, network in itertools.product(MEANS, KEYS, ("last", "best")):
        (row,) = rows(found.summary, configuration=name, key=key, network=network)
        runs = rows(found.runs, configuration=name, key=key, network=network)
        x = [run["accuracy"] for run in runs]
        low, high = stats.t.interval(0.95, 2, np.mean(x), stats.sem(x))
        assert row["seeds"] == 3
        assert (row["method"], row["transductive"]) == (METHOD, False)
        assert (row["mean"] - row["ci95"], row["mean"] + row["ci95"]) == pytest.approx((low, high))
        assert row["std"] == pytest.approx(np.std(x, ddof=1))
        assert (row["min"], row["max"]) == (min(x), max(x))
        assert row["ci95_episodes"] == pytest.approx(np.mean([run["ci95"] for run in runs]))
        assert row["params"] == runs[0]["params"]
        assert row["macs"] == runs[0]["macs"]
        assert row["training_macs"] == runs[0]["training_macs"]
    (lowest,) = rows(found.summary, configuration="A1", key="pretrain/loss", network="best")
    assert (lowest["mean"], lowest["seeds"]) == (2.0, 3)
    assert lowest["ci95"] == pytest.approx(stats.t.ppf(0.975, 2) / math.sqrt(3))
    (last,) = rows(found.summary, configuration="A1", key="pretrain/loss", network="last")
    assert (last["mean"], last["std"]) == (4.0, 0.0)


def test_every_pair_is_compared_on_the_same_episodes(entries: list[Entry]) -> None:
    found = aggregate(entries)
    assert tuple(found.comparisons.columns) == COMPARISON_COLUMNS
    assert len(found.comparisons) == 3 * len(KEYS) * 2
    p_episodes, p_both = [], []
    for key, network in itertools.product(KEYS, ("last", "best")):
        family = rows(found.comparisons, key=key, network=network)
        assert [(row["a"], row["b"]) for row in family] == [
            ("A1", "A2"),
            ("A1", "A7"),
            ("A2", "A7"),
        ]
        for row in family:
            a, b = (
                np.stack(
                    [
                        read_episodes(entry.run)[network][key]
                        for entry in entries
                        if entry.configuration == row[side]
                    ]
                )
                for side in ("a", "b")
            )
            plain = paired_difference(a.mean(0), b.mean(0))
            both = crossed_difference(a - b)
            assert (row["difference"], row["ci95_episodes"]) == pytest.approx(plain[:2])
            assert row["difference"] == pytest.approx(MEANS[row["a"]] - MEANS[row["b"]], abs=1.5)
            assert row["ci95_seeds_episodes"] == pytest.approx(both.ci95)
            assert row["p_episodes"] == pytest.approx(plain.p_value)
            assert row["p_seeds_episodes"] == pytest.approx(both.p_value)
            assert (row["seeds"], row["episodes"]) == (3, 100)
            assert row["over"] == "seeds and episodes"
            p_episodes.append(plain.p_value)
            p_both.append(both.p_value)
    # One family: shots and networks stand in one table.
    every = [
        row
        for key, network in itertools.product(KEYS, ("last", "best"))
        for row in rows(found.comparisons, key=key, network=network)
    ]
    adjusted = holm(np.array(p_both))
    assert [row["p_seeds_episodes_holm"] for row in every] == pytest.approx(adjusted)
    assert [row["p_episodes_holm"] for row in every] == pytest.approx(holm(np.array(p_episodes)))
    assert [row["significant"] for row in every] == (adjusted < 0.05).tolist()
    decided = [row["significant"] for row in rows(found.comparisons)]
    assert any(decided)
    assert not all(decided)  # A2 and A7 are one percent and a seed's luck apart


def test_one_seed_is_compared_over_episodes_alone(tmp_path: Path) -> None:
    found = aggregate(sweep(tmp_path, MEANS, seeds=1))
    for row in rows(found.comparisons):
        assert (row["seeds"], row["over"]) == (1, "episodes")
        assert math.isnan(row["p_seeds_episodes"])
        assert math.isnan(row["p_seeds_episodes_holm"])
        assert math.isnan(row["ci95_seeds_episodes"])
        assert row["significant"] == (row["p_episodes_holm"] < 0.05)
    for row in rows(found.summary):
        assert row["seeds"] == 1
        assert math.isnan(row["ci95"])
        assert math.isnan(row["std"])
        assert row["min"] == row["mean"] == row["max"]


def test_only_common_seeds_are_compared(entries: list[Entry]) -> None:
    kept = [e for e in entries if (e.configuration, e.seed) not in {("A2", 0), ("A7", 2)}]
    found = aggregate(kept)
    seeds = {(r["a"], r["b"]): r["seeds"] for r in rows(found.comparisons)}
    assert seeds == {("A1", "A2"): 2, ("A1", "A7"): 2, ("A2", "A7"): 1}
    two = rows(found.comparisons, over="seeds and episodes")
    p = np.array([row["p_seeds_episodes"] for row in two])
    assert [row["p_seeds_episodes_holm"] for row in two] == pytest.approx(holm(p))
    without = aggregate([e for e in entries if (e.configuration == "A1") == (e.seed == 0)])
    assert pairs(without) == {("A2", "A7")}
    assert any("without a common seed" in note and "A1 and A2" in note for note in without.notes)


def test_inductive_and_transductive_never_meet(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 5, 50)
    entries = []
    for name, seed in itertools.product("ab", range(2)):
        for transductive in (False, True):
            label = f"{name}{'+' if transductive and name == 'b' else ''}"
            # "a" has one seed of each kind under one name, "b" and "b+" are named apart.
            if name == "a" and transductive != bool(seed):
                continue
            run = record(
                tmp_path / f"{name}-{seed}-{transductive}",
                {KEY: accuracies(rng, shared, 60)},
                transductive=transductive,
            )
            entries.append(Entry(label, seed, run))
    found = aggregate(entries)
    counts = {(r["configuration"], r["transductive"]): r["seeds"] for r in rows(found.summary)}
    assert counts == {("a", False): 1, ("a", True): 1, ("b", False): 2, ("b+", True): 2}
    compared = {(r["a"], r["b"], r["transductive"]) for r in rows(found.comparisons)}
    assert compared == {("a", "b", False), ("a", "b+", True)}


def change(file: str, *path: str, to: Any) -> Callable[[Path], None]:
    """Set a value of a JSON or YAML file of a run."""

    def apply(run: Path) -> None:
        content = yaml.safe_load((run / file).read_text())
        inner = content
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = to
        (run / file).write_text(json.dumps(content))

    return apply


def cut(file: str) -> Callable[[Path], None]:
    def apply(run: Path) -> None:
        content = (run / file).read_bytes()
        (run / file).write_bytes(content[: len(content) // 2])

    return apply


def delete(file: str) -> Callable[[Path], None]:
    return lambda run: (run / file).unlink()


def swap(run: Path) -> None:
    other = next(path for path in run.parent.iterdir() if path != run)
    shutil.copy(other / "episodes.npz", run / "episodes.npz")


def nest(run: Path) -> None:
    np.savez(run / "episodes.npz", **{key: np.zeros((2, 50)) for key in KEYS})


GONE, ALONE, COUNTED = 0, 1, 2  # what is left of the run: nothing, its own rows, comparisons too
ODD = [
    (delete("results.json"), GONE, "no results.json that can be read"),
    (cut("results.json"), GONE, "no results.json that can be read"),
    (change("results.json", "fewshot", to=[1]), GONE, "no results.json that can be read"),
    (change("status.json", "status", to="FAILED"), GONE, "is FAILED, not FINISHED"),
    (change("status.json", "status", to="RUNNING"), GONE, "is RUNNING, not FINISHED"),
    (delete("episodes.npz"), ALONE, "has no episodes.npz (written by an older version"),
    (cut("episodes.npz"), ALONE, "episodes.npz that cannot be read"),
    (swap, ALONE, "the mean of episodes.npz is"),
    (nest, ALONE, "something else than accuracies"),
    (delete("config.yaml"), ALONE, "no config.yaml that can be read"),
    (cut("config.yaml"), ALONE, "no config.yaml that can be read"),
    (change("config.yaml", "evaluation", to=None), ALONE, "no config.yaml that can be read"),
    (delete("events.jsonl"), COUNTED, "no events.jsonl that can be read"),
    (cut("status.json"), COUNTED, "has no status.json that can be read"),
]


@pytest.mark.parametrize(("spoil", "left", "said"), ODD)
def test_what_is_missing_is_noted_and_left_out(
    entries: list[Entry], spoil: Callable[[Path], None], left: int, said: str | None
) -> None:
    (victim,) = (e for e in entries if (e.configuration, e.seed) == ("A7", 1))
    spoil(victim.run)
    found = aggregate(entries)
    if said is None:
        assert found.notes == ()
    else:
        assert any("A7, seed 1" in note and said in note for note in found.notes)
        assert not [note for note in found.notes if "seed 1" not in note]
    assert bool(rows(found.runs, configuration="A7", seed=1)) == (left >= ALONE)
    (row,) = rows(found.summary, configuration="A7", key=KEY, network="last")
    assert row["seeds"] == (3 if left >= ALONE else 2)
    seeds = {(r["a"], r["b"]): r["seeds"] for r in rows(found.comparisons)}
    expected = 3 if left == COUNTED else 2
    assert seeds == {("A1", "A2"): 3, ("A1", "A7"): expected, ("A2", "A7"): expected}


def test_a_result_without_an_accuracy_is_left_out_alone(entries: list[Entry]) -> None:
    change("results.json", "fewshot", KEY, "accuracy", to=None)(entries[0].run)
    change("results.json", "fewshot", KEYS[1], "episodes", to=7)(entries[0].run)
    change("results.json", "fewshot_best", to=3)(entries[1].run)
    found = aggregate(entries)
    assert not rows(found.runs, configuration="A1", seed=0, key=KEY, network="last")
    assert rows(found.runs, configuration="A1", seed=0, key=KEY, network="best")
    assert not rows(found.runs, configuration="A1", seed=1, network="best")
    assert any("holds no accuracy" in note for note in found.notes)
    assert any("100 episodes where results.json has 7" in note for note in found.notes)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("evaluation", "seed", 1),
        ("evaluation", "queries", 5),
        ("evaluation", "datasets", ["digits", "omniglot"]),
        ("dataset", "image_size", 84),
        ("dataset", "split_seed", 1),
        ("dataset", "root", "elsewhere"),
    ],
)
def test_runs_that_were_evaluated_on_other_episodes_are_not_compared(
    entries: list[Entry], section: str, key: str, value: Any
) -> None:
    for entry in entries:
        if entry.configuration == "A7":
            change("config.yaml", section, key, to=value)(entry.run)
    found = aggregate(entries)
    assert pairs(found) == {("A1", "A2")}
    assert len(rows(found.summary, configuration="A7")) == len(KEYS) * 2 + 2
    (note,) = (n for n in found.notes if n.startswith(f"{KEY}: not all runs"))
    assert f"A7 (seed 2) with {section}.{key}={json.dumps(value)}" in note
    every = rows(found.comparisons)  # what is not compared is not adjusted for
    assert len(every) == len(KEYS) * 2
    p = np.array([row["p_episodes"] for row in every])
    assert [row["p_episodes_holm"] for row in every] == holm(p).tolist()


def test_a_run_whose_data_set_has_no_root_is_compared_with_one_that_had_none(
    entries: list[Entry],
) -> None:
    """Versions before stored null there."""
    for entry in entries:
        if entry.configuration == "A7":
            config = yaml.safe_load((entry.run / "config.yaml").read_text())
            del config["dataset"]["root"]
            (entry.run / "config.yaml").write_text(json.dumps(config))
    assert pairs(aggregate(entries)) == {("A1", "A2"), ("A1", "A7"), ("A2", "A7")}


def test_another_number_of_episodes_is_not_compared(tmp_path: Path) -> None:
    entries = sweep(tmp_path / "a", {"A1": 50, "A2": 60})
    entries += sweep(tmp_path / "b", {"A7": 60}, episodes=60)
    found = aggregate(entries)
    assert pairs(found) == {("A1", "A2")}
    assert any("evaluation.episodes=60" in note for note in found.notes)


def test_unbalanced_queries_are_compared_among_themselves_only(tmp_path: Path) -> None:
    """And a run of before the option had balanced ones, whatever the alpha that has no effect."""
    given: dict[str, dict[str, Any]] = {
        "old": {},
        "even": {"query_balance": "balanced", "dirichlet_alpha": 3.0},
        "uneven": {"query_balance": "dirichlet", "dirichlet_alpha": 2.0},
        "as uneven": {"query_balance": "dirichlet", "dirichlet_alpha": 2.0},
        "less uneven": {"query_balance": "dirichlet", "dirichlet_alpha": 5.0},
    }
    rng = np.random.default_rng(2)
    entries = [
        Entry(
            name, 0, record(tmp_path / name, {KEY: accuracies(rng, np.zeros(50), 60)}, evaluation=e)
        )
        for name, e in given.items()
    ]
    assert pairs(aggregate(entries)) == {("old", "even"), ("uneven", "as uneven")}


def test_the_commonest_list_counts_where_seeds_have_several(entries: list[Entry]) -> None:
    for entry in entries:
        if entry.seed == 0:
            change("config.yaml", "evaluation", "seed", to=9)(entry.run)
    found = aggregate(entries)
    assert {row["seeds"] for row in rows(found.comparisons)} == {2}
    assert any("A1 (seed 0), A2 (seed 0), A7 (seed 0) with" in note for note in found.notes)


def of_images(entry: Entry, images: str) -> None:
    """Let a run have recorded the checksum of what it was evaluated on."""
    data = {"evaluated": {"digits/val": {"identity": images}}}
    change("results.json", "data", to=data)(entry.run)


def test_the_folder_of_images_that_are_known_to_be_the_same_counts_for_nothing(
    entries: list[Entry],
) -> None:
    """Also where the seeds of a configuration were run on several machines."""
    for index, entry in enumerate(entries):
        of_images(entry, "the same")
        change("config.yaml", "dataset", "root", to=f"folder {index}")(entry.run)
    found = aggregate(entries)
    assert {row["seeds"] for row in rows(found.comparisons)} == {3}
    assert found.notes == ()


def test_what_was_evaluated_on_other_images_enters_no_mean(entries: list[Entry]) -> None:
    for entry in entries:
        of_images(entry, "others" if (entry.configuration, entry.seed) == ("A2", 1) else "those")
    found = aggregate(entries)
    seeds = {(r["configuration"], r["seeds"]) for r in rows(found.summary, key=KEY)}
    assert seeds == {("A1", 3), ("A2", 2), ("A7", 3)}
    assert not rows(found.runs, configuration="A2", seed=1)
    note = f"A2, seed 1, {KEY}: it was evaluated on other images than A2, seed 0: left out"
    assert any(note in one for one in found.notes)


def test_configurations_on_other_images_are_not_compared(entries: list[Entry]) -> None:
    for entry in entries:
        of_images(entry, "others" if entry.configuration == "A7" else "those")
    found = aggregate(entries)
    assert pairs(found) == {("A1", "A2")}
    assert {row["seeds"] for row in rows(found.summary, key=KEY)} == {3}
    assert any("images (checksum)=others" in note for note in found.notes)


def test_the_first_of_two_finished_runs_of_one_seed_counts(
    entries: list[Entry], tmp_path: Path
) -> None:
    again = tmp_path / "again"
    shutil.copytree(entries[3].run, again)
    change("status.json", "status", to="FAILED")(entries[0].run)
    retried = tmp_path / "retried"
    shutil.copytree(entries[1].run, retried)
    found = aggregate([*entries, Entry("A2", 0, again), Entry("A1", 0, retried)])
    assert not rows(found.runs, run=str(again))
    assert rows(found.runs, run=str(retried))
    assert list(dict.fromkeys(found.runs["configuration"])) == list(MEANS)
    assert any(str(again) in note and "more than one" in note for note in found.notes)


def test_the_later_line_of_a_step_counts(tmp_path: Path) -> None:
    x = {KEY: np.array([50.0, 60.0, 70.0])}
    run = record(tmp_path / "a", x, losses=[4.0, 1.0, 2.0, None])
    told = [
        {"time": 1.0, "kind": "metrics", "step": 10, "values": {"pretrain/loss": 3.0}},
        {"time": 1.0, "kind": "metrics", "step": 20, "values": {"pretrain/loss": 2.5}},
        {"time": 1.0, "kind": "metrics", "step": 30, "values": {"pretrain/loss": 2.75}},
    ]
    with (run / "events.jsonl").open("a") as lines:
        lines.writelines(json.dumps(line) + "\n" for line in told)
        lines.write('{"time": 2.0, "kind": "metrics", "step": 40, "values": {"pretrain/loss"')
    found = aggregate([Entry("A", 0, run)])
    (row,) = rows(found.runs)
    assert (row["loss_best"], row["loss_last"]) == (2.5, 2.75)
    assert any("1 lines of events.jsonl cannot be read" in note for note in found.notes)


def test_a_last_loss_that_is_not_finite_is_none(tmp_path: Path) -> None:
    x = {KEY: np.array([50.0, 60.0, 70.0])}
    run = record(tmp_path / "a", x, losses=[4.0, 1.0, None])
    found = aggregate([Entry("A", 0, run)])
    (row,) = rows(found.runs)
    assert row["loss_best"] == 1.0
    assert math.isnan(row["loss_last"])
    assert any("not finite at 1 logged steps" in note for note in found.notes)
    assert not rows(found.summary, key="pretrain/loss", network="last")


def test_nothing_gives_empty_tables() -> None:
    found = aggregate([Entry("A1", 0, Path("nowhere"))])
    assert [len(t) for t in (found.runs, found.summary, found.comparisons)] == [0, 0, 0]
    assert tuple(found.comparisons.columns) == COMPARISON_COLUMNS
    assert found.notes == ("A1, seed 0 has no results.json that can be read: left out.",)


def test_fifty_configurations_are_compared_in_seconds(tmp_path: Path) -> None:
    entries = sweep(tmp_path, {f"c{i}": 50 + i / 50 for i in range(50)}, episodes=2_000)
    aggregate(entries[:6])  # pandas and SciPy are imported
    began = time.process_time()
    found = aggregate(entries)
    assert len(found.comparisons) == 2 * 50 * 49 / 2
    assert time.process_time() - began < 5


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "20", True])
@pytest.mark.parametrize("group", ["fewshot", "fewshot_best"])
def test_an_accuracy_that_is_none_enters_no_mean(
    value: Any, group: str, entries: list[Entry]
) -> None:
    """Null of this version, or the NaN of an older one, which Python's JSON reads."""
    path = entries[0].run / "results.json"
    results = json.loads(path.read_text())
    results[group][KEYS[0]]["accuracy"] = value
    path.write_text(json.dumps(results))
    found, network = aggregate(entries), {"fewshot": "last", "fewshot_best": "best"}[group]
    about = f"A1, seed 0, {KEYS[0]}, {network} network: results.json holds no accuracy: left out."
    assert about in found.notes
    (summary,) = rows(found.summary, configuration="A1", key=KEYS[0], network=network)
    assert summary["seeds"] == 2
    assert math.isfinite(summary["mean"])


@pytest.mark.parametrize("written", [True, False])
def test_an_accuracy_that_means_little_is_named(written: bool, entries: list[Entry]) -> None:
    """A diverged run of an older version: 20.00 ± 0.00 %."""
    path = entries[0].run / "results.json"
    results = json.loads(path.read_text())
    result = results["fewshot"][KEYS[0]]
    result |= {"accuracy": 20.0, "ci95": 0.0}
    if written:
        result |= {"ci95": 1.0, "doubts": ["all embeddings are equal"]}
    path.write_text(json.dumps(results))
    doubt = "all embeddings are equal" if written else "every episode has the same accuracy"
    about = f"A1, seed 0, {KEYS[0]}, last network: the accuracy counts, but means little"
    assert f"{about}, because {doubt}." in aggregate(entries).notes
    results["fewshot"][KEYS[0]] |= {"accuracy": 100.0, "ci95": 0.0, "doubts": []}
    path.write_text(json.dumps(results))
    assert not any("means little" in note for note in aggregate(entries).notes)


def test_a_latency_of_0_is_none(entries: list[Entry]) -> None:
    path = entries[0].run / "results.json"
    results = json.loads(path.read_text())
    results["efficiency"]["latency_ms_b1"] = 0.0
    path.write_text(json.dumps(results))
    (row,) = rows(aggregate(entries).runs, run=str(entries[0].run), key=KEYS[0], network="last")
    assert math.isnan(row["latency_ms_b1"])


def test_equal_settings_on_other_images_are_not_the_same_episodes() -> None:
    result = EpisodeResult("d/val/5w1s", "last", 50.0, 1.0, 2, "ncm", False, {})
    one = Evaluated(result, 1.0, 1.0, 1.0, 1.0, None, frozenset(), "checksum")
    assert same_episodes(one, one)
    assert not same_episodes(one, one._replace(images="another"))
    assert not same_episodes(
        one, one._replace(result=result._replace(episodes=3))
    )  # of the same list, but fewer of them
