"""The bias-amplification paper (arXiv 2410.15234)."""
