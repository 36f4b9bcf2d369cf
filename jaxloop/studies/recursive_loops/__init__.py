"""The experiments of "Recursive Training Loops in LLMs" (arXiv 2504.03814)."""
