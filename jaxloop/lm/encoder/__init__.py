"""Encoders for embeddings and classifiers."""
