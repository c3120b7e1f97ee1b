"""`make bench`: the program's speed beside the alternative a user would pick, as ratios.

`rows` says what is compared. Each side of a row is a function in one of the topics (`views`,
`pretraining`, `evaluation`, `rendering`, `startup`, `pruning`, `logging_costs`) that prepares and
returns the work of one round; `child` runs it in a process of its own, `runner` lets the two take
turns, `results` keeps what they found. `profiling` is `--profile`.
"""
