"""A file of a run that is missing or damaged: one error, whichever file it is."""

from __future__ import annotations

from pathlib import Path


class UnreadableError(ValueError):
    """A file of a run that cannot be read.

    The text is a clause about the run, such as "has no episodes.npz". `path`: the file; `reason`:
    what is wrong with it; `where`: in which part of it; `damaged`: it can be opened, and holds
    something else than a run writes there.
    """

    def __init__(
        self, path: Path, reason: str, clause: str = "", *, where: str = "", damaged: bool = True
    ) -> None:
        self.path, self.reason, self.where, self.damaged = path, reason, where, damaged
        super().__init__(clause or f"has a {path.name} that cannot be read")


def unreadable(path: Path, error: BaseException, why_missing: str = "") -> UnreadableError:
    """Return the error for a file whose reading has raised `error`.

    `why_missing`: what it may mean that it is not there.
    """
    if isinstance(error, OSError):
        reason = error.strerror or type(error).__name__
        clause = ""
        if isinstance(error, FileNotFoundError):
            clause = f"has no {path.name}{f': {why_missing}' if why_missing else ''}"
        return UnreadableError(path, reason, clause, damaged=False)
    words = " ".join(str(error).split())  # YAML's span several lines
    return UnreadableError(path, f"{type(error).__name__}: {words}")
