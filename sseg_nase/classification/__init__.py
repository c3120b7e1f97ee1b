"""Closed sets: figures of a classification, and classifiers on frozen embeddings."""
