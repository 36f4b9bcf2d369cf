"""The multi-entity paper (arXiv 2505.21677)."""
