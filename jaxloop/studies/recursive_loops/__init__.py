"""The recursive-loops paper (arXiv 2504.03814)."""
