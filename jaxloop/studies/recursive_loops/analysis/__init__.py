"""The regressions, figures and findings of the recursive-loops paper."""
