"""Networks: descriptions, blocks, the evolvable CNN, and mutations as maps."""
