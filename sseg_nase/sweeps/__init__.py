"""Sweeps: planned and frozen at submission, run by Hydra's launchers, told from what is on disk."""
