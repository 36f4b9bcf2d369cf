"""Microbenchmarks of training and decoding."""
