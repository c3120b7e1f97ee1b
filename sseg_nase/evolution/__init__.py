"""SSEG: when to evolve, into what, and carrying a training state across."""
