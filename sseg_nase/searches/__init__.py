"""`task=search`: a search as a run of the program, from its configuration to its report.

`parts` makes space, strategy and objectives from a config, `jobs` measures candidates by runs of
the program, `task` is the search itself, `inspection` shows its state, `report` what came out.
"""
