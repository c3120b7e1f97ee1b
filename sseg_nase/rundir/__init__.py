"""The files of a run: their names, formats, one writer and one reader each."""
