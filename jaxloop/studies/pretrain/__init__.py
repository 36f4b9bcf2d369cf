"""Tokenizers and tiny base models from scratch."""
