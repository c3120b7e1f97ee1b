"""Few-shot: classifiers, evaluation on episode lists, statistics."""
