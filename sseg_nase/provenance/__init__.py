"""Which code ran where: git, the files of the code, and the environment."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent.parent
