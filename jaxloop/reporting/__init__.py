"""Figures, tables and pages of a run."""
