"""Scripts that measure, one for each question, and `suite`: `make bench`."""
