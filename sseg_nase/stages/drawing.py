"""Pictures and the difficulty of every level of the curriculum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from sseg_nase.config.schema import Config
from sseg_nase.data.curriculum.difficulty import difficulty
from sseg_nase.data.curriculum.render import render
from sseg_nase.data.grey import of_channels
from sseg_nase.files import replacing, write_text
from sseg_nase.stages.setup import images_of

PREVIEW_ROWS, PREVIEW_COLUMNS = 6, 10
DIFFICULTY_IMAGES = 500


def draw_curriculum(config: Config, folder: Path) -> list[dict[str, Any]]:
    """Write `preview_<LEVEL>.png` per level and the difficulty table `difficulty.md`."""
    from PIL import Image

    levels = config.curriculum.levels
    dataset = config.dataset
    natural = images_of(config, dataset, dataset.natural) if "NATURAL" in levels else None
    size = config.dataset.image_size

    def images(level: str, count: int) -> torch.Tensor:
        if level == "NATURAL":
            assert natural is not None
            chosen = torch.linspace(0, len(natural) - 1, min(count, len(natural))).long()
            return natural.batch(chosen)
        indices = torch.arange(count)
        drawn = render(level, indices, seed=config.seed, image_size=size, device="cpu")
        return of_channels(drawn, config.dataset.channels)

    rows = []
    for level in levels:
        drawn = images(level, DIFFICULTY_IMAGES)
        sheet = images(level, PREVIEW_ROWS * PREVIEW_COLUMNS)  # of all classes, where there are any
        sheet = nn.functional.pad(sheet, (1, 1, 1, 1), value=255)
        lines = [torch.cat(list(line), dim=2) for line in sheet.split(PREVIEW_COLUMNS)]
        lines = [line for line in lines if line.shape[2] == lines[0].shape[2]]
        picture = torch.cat(lines, dim=1).expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        with replacing(folder / f"preview_{level}.png") as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        parts = difficulty(drawn.expand(-1, 3, -1, -1))
        rows.append(
            {
                "level": level,
                "images": len(drawn),
                "edge_density": parts.edge_density.mean().item(),
                "colour_variance": parts.colour_variance.mean().item(),
                "high_frequency": parts.high_frequency.mean().item(),
                "difficulty": parts.score.mean().item(),
            }
        )
    header = list(rows[0])
    table = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for row in rows:
        cells = [f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()]
        table.append("| " + " | ".join(cells) + " |")
    write_text(folder / "difficulty.md", "\n".join(table) + "\n")
    return rows
