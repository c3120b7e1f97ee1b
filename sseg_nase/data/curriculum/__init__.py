"""The curriculum: drawing, difficulty, and the order of levels."""
