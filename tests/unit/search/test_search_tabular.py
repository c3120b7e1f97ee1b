from __future__ import annotations

import lzma
import os
from pathlib import Path

import pytest

from sseg_nase.errors import UserError
from sseg_nase.search import Budget, Candidate, Clock, Table, Tabular, search
from sseg_nase.search.evaluators.tabular import refuse_test
from sseg_nase.search.strategies import Evolution, RandomSearch
from tests.support.synthetic import SPACE, new_log, write_table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    path = write_table(tmp_path_factory.mktemp("table") / "cells.csv")
    return Table(path, SPACE, "arch", SPACE.from_string)


def candidate(table: Table, **fidelity: float) -> Candidate:
    point = SPACE.from_json(next(iter(table.rows)))
    return Candidate(0, point, SPACE.key(point), fidelity)


def test_a_table_gives_scores_and_seconds(table: Table) -> None:
    evaluator = Tabular(table, {"accuracy": "val200", "macs": "macs"}, seconds="seconds")
    asked = candidate(table)
    evaluator.start(asked)
    scored = evaluator.result()
    row = next(iter(table.rows.values()))
    assert scored.scores == {"accuracy": float(row["val200"]), "macs": float(row["macs"])}
    assert scored.cost.seconds == float(row["seconds"])


def test_a_packed_table_is_the_same(table: Table, tmp_path: Path) -> None:
    packed = tmp_path / "cells.csv.xz"
    packed.write_bytes(lzma.compress(table.path.read_bytes()))
    assert Table(packed, SPACE, "arch", SPACE.from_string).rows == table.rows


def test_the_fidelity_picks_the_column(table: Table) -> None:
    evaluator = Tabular(table, {"accuracy": {12: "val12", 200: "val200"}})
    low, high = (
        evaluator.look_up(candidate(table, epochs=e)).scores["accuracy"] for e in (12, 200)
    )
    assert high - low == pytest.approx(9)
    failed = evaluator.look_up(candidate(table, epochs=50))
    assert failed.error == "the table has epochs 12, 200, not 50"


def test_what_the_table_lacks_is_a_failure_with_its_reason(table: Table) -> None:
    evaluator = Tabular(table, {"accuracy": "val200"})
    log = search(SPACE, RandomSearch(), evaluator, new_log(), Budget(candidates=60))
    failed = [s for s in log.told if s.error is not None]
    assert 0 < len(failed) < 60  # a twenty-fifth of the cells is there
    assert "the table has no accuracy for {" in str(failed[0].error)


@pytest.mark.parametrize(
    ("column", "protocol", "said"),
    [
        ("test200", "validation", "test200 is test accuracy"),
        ("c10_test12", "compare_strategies", "c10_test12 is test accuracy"),
        ("TestAcc", "compare_strategies", "TestAcc is test accuracy"),
        ("c10_half200", "validation", "10,000 CIFAR-10 test images, often called validation"),
    ],
)
def test_a_search_never_sees_test_scores(column: str, protocol: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        refuse_test(column, protocol)


def test_columns_that_a_search_may_see(table: Table) -> None:
    refuse_test("c10_val12", "validation")
    refuse_test("latest", "validation")
    refuse_test("c10_half200", "compare_strategies")
    with pytest.raises(UserError, match="compare strategies by regret alone"):
        Tabular(table, {"accuracy": "c10_half200"})
    Tabular(table, {"accuracy": "c10_half200"}, protocol="compare_strategies")
    with pytest.raises(UserError, match="is test accuracy"):
        Tabular(table, {"accuracy": {12: "val12", 200: "test200"}})
    with pytest.raises(UserError, match="is test accuracy"):
        Tabular(table, {"accuracy": "val12"}, seconds="test200")
    with pytest.raises(UserError, match="protocol='test' is none of validation"):
        Tabular(table, {"accuracy": "val12"}, protocol="test")


def test_a_table_names_its_mistakes(table: Table, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'val20'. Did you mean 'val200'"):
        table.column("val20")
    with pytest.raises(UserError, match="no column 'cell'"):
        Table(table.path, SPACE, "cell", SPACE.from_string)
    with pytest.raises(UserError, match=r"Column arch .*could not convert"):
        table.column("arch")
    with pytest.raises(UserError, match="cannot be read as a table"):
        Table(tmp_path / "none.csv", SPACE, "arch", SPACE.from_string)
    broken = tmp_path / "broken.csv.xz"
    broken.write_bytes(b"not packed")
    with pytest.raises(UserError, match="cannot be read as a table"):
        Table(broken, SPACE, "arch", SPACE.from_string)


def test_simulated_time_follows_the_tables_seconds(table: Table) -> None:
    log = new_log()
    clock = Clock(Tabular(table, {"accuracy": "val200"}, seconds="seconds").look_up, log, slots=1)
    search(SPACE, RandomSearch(), clock, log, Budget(candidates=80))
    assert clock.now == log.spent.seconds > 0


@pytest.mark.realdata
def test_evolution_on_the_real_table() -> None:
    data = os.environ.get("SSEG_NASE_DATA")
    if not data:
        pytest.skip("SSEG_NASE_DATA is not set")
    path = Path(data) / "nasbench201.csv.xz"
    if not path.exists():
        pytest.skip(f"SSEG_NASE_DATA={data} has no nasbench201.csv.xz")
    real = Table(path, SPACE, "arch", SPACE.from_string)
    first: dict[str, str] = {}
    for row in real.rows.values():
        key = SPACE.key(SPACE.from_string(row["arch"]))
        assert first.setdefault(key, row["index"]) == row["same"]
        costs = SPACE.costs(SPACE.from_string(row["arch"]))
        assert (costs["params"], costs["macs"]) == (int(row["params"]), int(row["macs"]))
    evaluator = Tabular(real, {"accuracy": "c10_half200"}, protocol="compare_strategies")
    best = []
    for seed in range(20):
        log = search(SPACE, Evolution(), evaluator, new_log(), Budget(candidates=150), seed=seed)
        best.append(log.value(log.best()))
    assert 91.57 - sum(best) / len(best) < 0.25
