"""A process without a home folder, as in a container with an unknown user, gets one to cache in."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from sseg_nase.errors import UserError

# What libraries keep in a home folder, where they cannot be told otherwise.
CACHES = {"XDG_CACHE_HOME": ".cache", "MPLCONFIGDIR": ".config/matplotlib"}


def find_home() -> str | None:
    """Make sure that there is a folder for caches; return in words what had to be done for it.

    Without a home folder, HOME becomes one below the temporary directory. Where the home folder
    cannot be written, `~` stays what it is and the caches go there. Who names a folder for them
    (SSEG_NASE_CACHE, XDG_CACHE_HOME) is not asked about the home folder.
    """
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    if home is not None and _writable(home / ".cache"):
        return None
    if home is not None and os.environ.get("XDG_CACHE_HOME"):
        return None
    own = temporary_folder()
    if home is None or not home.is_dir():
        os.environ["HOME"] = str(own)
        why = "there is no home folder" if home is None else f"the home folder {home} is not there"
    else:
        why = f"the home folder {home} cannot be written"
    for name, folder in CACHES.items():
        if name not in os.environ:
            place = own / folder
            place.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(place)
    remedy = "set SSEG_NASE_CACHE, or HOME, to a folder that stays"
    return f"{why}: caches go to {own}; {remedy}"


def expanded(key: str, text: str) -> Path:
    """Return the path with `~` as the home folder. Raises `UserError` for an unknown user's."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{key}={text}: {Path(text).parts[0]} is no home folder that is known here; write the "
            "path in full."
        ) from error


def temporary_folder() -> Path:
    """Return a folder below the temporary directory that is this user's alone, the same each time.

    Where someone else has taken its name, it is one that lasts only for this process.
    """
    user = os.getuid() if hasattr(os, "getuid") else "user"
    path = Path(tempfile.gettempdir()) / f"sseg-nase-{user}"
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        about = path.lstat()
        mine = not hasattr(os, "getuid") or about.st_uid == os.getuid()
        if stat.S_ISDIR(about.st_mode) and mine and not about.st_mode & 0o022:
            return path
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="sseg-nase-"))


def _writable(folder: Path) -> bool:
    """Whether files can be made in `folder`, or it in the first folder above that is there."""
    place = next(place for place in (folder, *folder.parents) if place.exists())
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
