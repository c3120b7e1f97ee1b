"""What the driver tells of this machine's GPUs, whoever uses them."""

from __future__ import annotations

import subprocess

PROGRAM = "nvidia-smi"
SECONDS = 30.0  # a driver that hangs is none


def told(*keys: str) -> list[list[str]]:
    """Return what `nvidia-smi` says under these keys of `--query-gpu`, a list for every GPU.

    Texts as they are, such as "[N/A]"; memory in MiB, loads in percent. Nothing where there is no
    such program, or it does not answer.
    """
    command = [PROGRAM, f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    lines = (line for line in listed.splitlines() if line.strip())
    return [[text.strip() for text in line.split(",")] for line in lines]
