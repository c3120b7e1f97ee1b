"""`benchmarks/accuracies.py`: the table of docs/results.md comes from what runs have said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracies


def a_run(folder: Path, seed: int, five: float, status: str = "FINISHED") -> Path:
    folder.mkdir(parents=True)
    figures = {"ci95": 0.2, "episodes": 10_000, "method": "prototype/cosine/cl2n"}
    lists = {
        "cifar_fs/val/5w1s": {"accuracy": 50.0, **figures},
        "cifar_fs/val/5w5s": {"accuracy": five, **figures},
    }
    views = {
        "cifar_fs/val/5w1s": {"accuracy": 51.0, **figures},
        "cifar_fs/val/5w5s": {"accuracy": five + 2, **figures},
    }
    results: dict[str, Any] = {
        "status": status,
        "fewshot": lists,
        "fewshot_views": views,
        "images_seen": {"synthetic": 0, "real_unlabeled": 9, "real_labeled": 0},
        "architecture": {"params": 761_376, "macs": 32_440_320, "channels": [16, 40]},
        "training_macs": {"total": 24e13},
        "seconds": {"pretrain": 3000, "evaluate": 60},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    given = ["experiment=x", f"seed={seed}", "paths.data_dir=/secret", "views.grey=0.3"]
    (folder / "overrides.yaml").write_text("".join(f"- {one}\n" for one in given))
    (folder / "status.json").write_text(json.dumps({"status": status}))
    (folder / "config.yaml").write_text(
        f"seed: {seed}\ndataset: {{name: cifar_fs, image_size: 32}}\nbackbone: {{name: conv4}}\n"
    )
    return folder


def rows_of(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[1:]]


def test_seeds_of_a_recipe_are_one_line_and_its_views_another(tmp_path: Path) -> None:
    kept, page = tmp_path / "kept.json", tmp_path / "page.md"
    page.write_text(f"before\n{accuracies.BEGIN}\nold\n{accuracies.END}\nafter\n")
    runs = [a_run(tmp_path / str(seed), seed, 60.0 + seed) for seed in range(3)]
    accuracies.keep("grown", runs, kept)
    accuracies.write_table(kept, page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    plain, views = rows_of(text)
    assert plain[0] == "cifar_fs val, 32 px, unlabeled base"
    assert plain[1:3] == ["grown", "conv4 (16-40)"]
    assert plain[3:7] == ["761,376", "32.4", "240.0", "51.0"]
    assert plain[7:9] == ["50.00 ± 0.00 %", "61.00 ± 2.48 %"]  # t(2) = 4.303 times 1/√3
    assert plain[9] == "0, 1, 2; 10,000 episodes"
    assert plain[10] == "LF2CS, conv4 (64-64-64-64): 51.52 / 66.82"
    assert views[1] == "grown, mean of views"
    assert views[4] == "32.4 a view"
    assert views[8] == "63.00 ± 2.48 %"
    assert "/secret" not in kept.read_text()
    assert "seed=" not in kept.read_text()
    assert (
        json.loads(kept.read_text())["runs"][0]["command"]
        == "sseg-nase experiment=x views.grey=0.3"
    )


def test_one_seed_has_its_interval_over_episodes_and_a_run_is_kept_once(tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    run = a_run(tmp_path / "a", 0, 60.0)
    accuracies.keep("grown", [run, run], kept)
    accuracies.keep("another", [run], kept)
    accuracies.keep("grown", [run], kept)
    rows = rows_of("\n".join(accuracies.table(accuracies.kept_in(kept))))
    assert [row[1] for row in rows] == [
        "another",
        "another, mean of views",
        "grown",
        "grown, mean of views",
    ]
    assert rows[0][8] == "60.00 ± 0.20 %"


def test_what_has_not_finished_is_not_kept(tmp_path: Path) -> None:
    run = a_run(tmp_path / "a", 0, 60.0, status="INTERRUPTED")
    with pytest.raises(SystemExit, match="INTERRUPTED"):
        accuracies.keep("grown", [run], tmp_path / "kept.json")
    assert not (tmp_path / "kept.json").exists()


def test_the_page_has_the_table_of_what_is_kept(tmp_path: Path) -> None:
    page = tmp_path / "results.md"
    page.write_text(accuracies.PAGE.read_text())
    accuracies.write_table(page=page)
    assert page.read_text() == accuracies.PAGE.read_text()
