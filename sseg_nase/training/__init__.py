"""The loop, its events, what intervenes in it, and checkpoints."""
