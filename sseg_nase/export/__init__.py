"""A trained network taken home: files that run elsewhere, and predictions from a few photos."""
