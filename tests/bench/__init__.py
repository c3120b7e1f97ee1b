"""`make bench`: our speed beside the obvious alternative, in one process, as ratios."""
