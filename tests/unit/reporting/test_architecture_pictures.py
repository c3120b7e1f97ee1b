"""Pictures of networks: what they tell, and that it can be read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.evolution.history import MutationRecord, counts
from sseg_nase.nets.architecture import Architecture
from sseg_nase.nets.families.resnet.network import ResNetArchitecture
from sseg_nase.nets.families.resnet12.network import ResNet12Architecture
from sseg_nase.nets.families.vit.network import ViTArchitecture
from sseg_nase.nets.mutation import Mutation
from sseg_nase.nets.mutations.grow import grow, grow_stages
from sseg_nase.nets.mutations.prune import prune
from sseg_nase.nets.mutations.widen import widen
from sseg_nase.reporting.figures import Drawing
from sseg_nase.reporting.figures.architecture import (
    HIGHEST,
    LOWEST,
    MOST_SHOWN,
    ROWS,
    architecture_pictures,
    continued,
    draw_architecture,
    draw_fixed,
)
from sseg_nase.reporting.figures.style import PAGE
from sseg_nase.rundir.record import RunRecord

SEED = Architecture.seed((16, 32, 64), resolution=32)
TWELVE = Architecture.seed(
    (4, 256, 16, 32, 64, 64, 96, 96, 128, 128, 200, 256), resolution=84, residual=True
)
WIDE = Architecture.seed((1024, 2048), resolution=84, embedding="flatten")


def halved(architecture: Architecture) -> Mutation:
    return prune(architecture, [range(0, c, 2) for c in architecture.channels])


MUTATIONS = {
    "grow": grow(SEED, out_channels=96),
    "grow inside": grow(Architecture.seed((8,) * 11, resolution=84), position=4),
    "grow before pooling": grow(SEED, position=1, before_pool=True),
    "grow in every stage": grow_stages(grow_stages(SEED).after),
    "widen": widen(SEED, 1),
    "widen all": widen(TWELVE, None),
    "prune": halved(TWELVE),
    "prune wide": halved(WIDE),
    "grow wide": grow(WIDE, out_channels=4096),
}


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def assert_readable(figure: Figure) -> None:
    """No two texts overlap, none leaves the figure, and none is tiny."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    legend = figure.axes[0].get_legend()
    shown = [text for text in figure.axes[0].texts if text.get_text()]
    shown += [] if legend is None else list(legend.get_texts())
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    width, height = figure.get_size_inches() * figure.dpi
    for said, box in boxes:
        assert min(box.x0, box.y0) >= 0, said
        assert box.x1 <= width, said
        assert box.y1 <= height, said
    for (first, one), (second, other) in combinations(boxes, 2):
        apart = one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
        assert apart, (first, second)
    assert min(text.get_fontsize() for text in shown) > 5


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_all_of_it_can_be_read(mutation: Mutation) -> None:
    figure = draw_architecture(mutation.before, mutation.after, "Mutation 3: a long title of it")
    assert_readable(figure)
    assert figure.get_figwidth() == pytest.approx(PAGE)


@pytest.mark.parametrize(
    "network",
    [
        ResNet12Architecture("resnet12", 84),
        ResNetArchitecture("resnet50", 84),
        ViTArchitecture("vit_small", 84, patch_size=14),
    ],
    ids=lambda network: network.name,
)
def test_a_fixed_network_can_be_read(network: Any) -> None:
    figure = draw_fixed(network, network.name)
    assert_readable(figure)
    said = texts(figure)
    assert {str(c) for c in network.channels} <= set(said)
    assert any(f"{network.params:,} parameters" in text for text in said)


def test_more_than_twelve_blocks_make_it_wider_not_unreadable() -> None:
    figure = draw_architecture(None, Architecture.seed((256,) * 20, resolution=84))
    assert_readable(figure)
    assert figure.get_figwidth() > PAGE


def test_what_has_changed_is_said() -> None:
    after = widen(grow(SEED, out_channels=96).after, 0, channels=24).after
    after = prune(after, [range(24), range(20), range(64), range(96)]).after
    said = texts(draw_architecture(SEED, after, "From seed to final"))
    assert "From seed to final" in said
    assert [text for text in said if "→" in text] == ["16 → 24", "32 → 20"]
    assert said.count("new") == 1
    assert said.count("64") == 3  # both third blocks, and the features before
    ratios = after.params / SEED.params, after.macs() / SEED.macs()
    sizes = [text for text in said if "parameters" in text]
    assert sizes[0] == f"{SEED.params:,} parameters, {SEED.macs() / 1e6:.3g} M MACs at 32 px"
    assert f"(×{ratios[0]:.3g} parameters, ×{ratios[1]:.3g} MACs)" in sizes[1]
    assert {"16 px", "8 px", "4 px"} <= set(said)
    assert said.count("3×3") == 7


def test_the_legend_explains_what_occurs_and_nothing_else() -> None:
    def legend(before: Architecture | None, after: Architecture) -> list[str]:
        found = draw_architecture(before, after).axes[0].get_legend()
        return [] if found is None else [text.get_text() for text in found.get_texts()]

    assert legend(None, SEED) == ["2×2 max-pooling"]
    assert legend(None, Architecture.seed((8,), resolution=3)) == []
    assert legend(SEED, grow(SEED).after) == ["new block", "2×2 max-pooling", "shortcut"]
    moved = prune(TWELVE, [range(c // 2, c) for c in TWELVE.channels])
    assert legend(TWELVE, moved.after) == [
        "channels removed", "2×2 max-pooling", "shortcut", "shortcut, channels moved",
    ]  # fmt: skip


def test_boxes_grow_with_channels_within_bounds() -> None:
    figure = draw_architecture(None, TWELVE)
    boxes = [p for p in figure.axes[0].patches if isinstance(p, Rectangle)]
    heights = [box.get_height() for box in boxes]
    order = np.argsort(TWELVE.channels, kind="stable")
    assert np.all(np.diff(np.array(heights)[order]) >= 0)
    assert heights[1] == pytest.approx(HIGHEST)
    assert heights[0] == pytest.approx(LOWEST + (HIGHEST - LOWEST) * math.sqrt(4 / 256))


def test_blocks_are_found_again_where_that_can_be_known() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        widths = rng.permutation([8, 16, 32, 64, 128])[: rng.integers(2, 6)].tolist()
        before = Architecture.seed(widths, resolution=64)
        mutation = grow(before, position=int(rng.integers(1, len(widths) + 1)))
        assert continued(before, mutation.after) == mutation.origins
    alike = Architecture.seed((8, 8), resolution=64)
    same = Architecture.seed((8, 8, 8, 8), resolution=64)
    assert continued(alike, same) == (0, 1, None, None)
    with pytest.raises(UserError, match="3 blocks before and 2 after"):
        draw_architecture(SEED, alike)


# -- of a run ----------------------------------------------------------------------------------


def lines_of(mutations: Sequence[Mutation], rolled_back: int | None = None) -> Iterator[Any]:
    for index, mutation in enumerate(mutations):
        yield MutationRecord(
            index=index, epoch=index + 4, step=9, kind=mutation.kind, target=mutation.target,
            trigger={}, before=counts(mutation.before), after=counts(mutation.after),
            function_delta=0.25, loss_before=5.5, loss_after=None if index else 5.25,
            fitness=None, seconds=0.1, accepted=index != rolled_back,
        ).to_dict()  # fmt: skip


@cache
def config_of(*overrides: str) -> dict[str, Any]:
    return dict(json.loads(json.dumps(asdict(load(["dataset.image_size=32", *overrides])))))


def recorded(folder: Path, mutations: Sequence[Any] = (), *overrides: str) -> RunRecord:
    config = config_of(*overrides)
    return RunRecord(folder, config, {"status": "FINISHED"}, {}, {}, list(mutations), ())


def drawn(record: RunRecord) -> list[Drawing]:
    found = list(architecture_pictures(record))
    assert len({drawing.name for drawing in found}) == len(found)
    for drawing in found:
        assert (drawing.figure is None) == (drawing.missing is not None)
        assert drawing.title
    return found


def a_history() -> list[Mutation]:
    first = grow(SEED, position=1, out_channels=24, before_pool=True)
    wrong = widen(first.after, 0)
    last = prune(first.after, [range(8), range(24), range(32), range(0, 64, 2)])
    return [first, wrong, last]


def test_a_run_is_shown_step_by_step(tmp_path: Path) -> None:
    mutations = a_history()
    record = recorded(tmp_path, list(lines_of(mutations, rolled_back=1)))
    (tmp_path / "architecture.json").write_text(json.dumps(mutations[-1].after.to_dict()))
    whole, steps = drawn(record)
    assert [d.name for d in (whole, steps)] == ["architecture", "mutations_00"]
    assert steps.title == "Mutations 0 to 2"
    assert "2 accepted mutations" in whole.caption
    for drawing in (whole, steps):
        assert drawing.figure is not None
        assert_readable(drawing.figure)
    assert steps.figure is not None
    said = texts(steps.figure)
    assert {"0 GROW", "2 PRUNE"} <= set(said)
    assert "1 WIDEN" not in said  # it was rolled back
    assert any(text.endswith("MACs at 32 px, after epoch 7") for text in said)
    assert said.count("new") == 1
    assert [text for text in said if "→" in text] == ["16 → 8", "64 → 32"]
    assert whole.figure is not None
    said = texts(whole.figure)
    # The block that was put between the first and the second is the new one, not the last.
    assert said.index("new") < said.index("64 → 32")
    assert [text for text in said if "→" in text] == ["16 → 8", "64 → 32"]


def test_of_many_mutations_the_first_and_the_last_are_shown(tmp_path: Path) -> None:
    mutations, now = [], SEED
    for _ in range(MOST_SHOWN + 3):
        mutations.append(widen(now, 0, channels=now.channels[0] + 1))
        now = mutations[-1].after
    whole, *rest = drawn(recorded(tmp_path, list(lines_of(mutations))))
    first_of_last = len(mutations) - MOST_SHOWN // 2
    assert [d.name for d in rest] == ["mutations_00", f"mutations_{first_of_last:02d}"]
    shown = [text for d in rest if d.figure is not None for text in texts(d.figure)]
    numbers = [*range(MOST_SHOWN // 2), *range(first_of_last, len(mutations))]
    assert [text for text in shown if text.endswith(" WIDEN")] == [f"{n} WIDEN" for n in numbers]
    assert "The first 6 and the last 6" in whole.caption
    for drawing in rest:
        assert drawing.figure is not None
        assert_readable(drawing.figure)
    (one, few) = drawn(recorded(tmp_path, list(lines_of(mutations[:ROWS]))))
    assert "The first" not in one.caption
    assert few.title == f"Mutations 0 to {ROWS - 1}"


def test_a_run_without_mutations_has_one_picture(tmp_path: Path) -> None:
    (one,) = drawn(recorded(tmp_path))
    assert one.figure is not None
    assert "No mutation was accepted" in one.caption
    fixed = ["backbone=resnet12_quarter", "evolution=none", "sparsity=none"]
    (one,) = drawn(recorded(tmp_path, (), *fixed))
    assert one.figure is not None
    assert "resnet12_quarter does not evolve" in one.caption
    # The network that was fine-tuned came from elsewhere, and the one that was evaluated, too.
    (tmp_path / "architecture.json").write_text(json.dumps(grow(SEED).after.to_dict()))
    for overrides in ((), ("task=evaluate", "checkpoint=last.pt")):
        (one,) = drawn(recorded(tmp_path, (), *overrides))
        assert one.figure is not None
        assert "4" in texts(one.figure)
        assert "No mutation" not in one.caption


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    lines = list(lines_of(a_history(), rolled_back=1))
    nothing, why = drawn(replace(recorded(tmp_path, lines), config=None))
    assert "does not tell its network" in str(nothing.missing)
    assert "config.yaml does not tell the seed network" in str(why.missing)
    damaged = [{**lines[0], "target": {}}, *lines[1:]]
    (tmp_path / "architecture.json").write_text(json.dumps(a_history()[-1].after.to_dict()))
    final, why = drawn(recorded(tmp_path, damaged))
    assert final.figure is not None
    assert "cannot be rebuilt from mutations.jsonl: mutation 0:" in str(why.missing)
    final, why = drawn(recorded(tmp_path, lines[:1]))
    assert final.figure is not None
    assert "does not lead to the network in architecture.json" in str(why.missing)
    for damage in ("{", "[]", '{"name": "else"}', '{"blocks": 3}'):
        (tmp_path / "architecture.json").write_text(damage)
        assert len(drawn(recorded(tmp_path, lines[:1]))) == 2
