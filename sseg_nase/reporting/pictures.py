"""Figures as parts of a document: drawn, written to files, or missing with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from sseg_nase.reporting.document import Picture
from sseg_nase.reporting.figures import Drawing, save

FOLDER = "figures"


def drawn(drawings: Iterable[Drawing], folder: Path) -> list[Picture]:
    """Write each figure to `folder`/figures when it comes, and return the pictures in order.

    What cannot be drawn never costs the report: it is a picture that says so.
    """
    pictures = []
    rest = iter(drawings)
    while True:
        try:
            drawing = next(rest, None)
        except Exception as error:  # whatever drawing stumbles over: the rest of the report stands
            pictures.append(Picture("Further figures", "", {}, _ours(error)))
            return pictures
        if drawing is None:
            return pictures
        files: dict[str, Path] = {}
        missing = drawing.missing
        try:
            files = {path.suffix[1:]: path for path in save(drawing, folder / FOLDER)}
        except OSError:
            raise  # the folder cannot be written
        except Exception as error:
            missing = _ours(error)
        width = None if drawing.figure is None else float(drawing.figure.get_figwidth())
        about = drawing.title, drawing.caption
        pictures.append(Picture(*about, files, missing, drawing.small, width))


def _ours(error: Exception) -> str:
    return f"It could not be drawn, an error of ours: {type(error).__name__}: {error}"


def files_of(pictures: Iterable[Picture]) -> list[Path]:
    """All files of the pictures."""
    return [path for picture in pictures for path in picture.files.values()]
