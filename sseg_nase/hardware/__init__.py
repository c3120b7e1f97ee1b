"""The machine: profiles, complexity, latency, memory."""
