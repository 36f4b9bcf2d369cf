"""The diversity paper (arXiv 2506.19262)."""
