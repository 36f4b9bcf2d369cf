"""The analysis of recursive-loops experiments: regressions, figures, findings.html."""
