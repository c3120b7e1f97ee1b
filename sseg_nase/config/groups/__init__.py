"""One module per config group: the classes of its options, with the checks of their values."""
