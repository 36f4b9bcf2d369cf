"""Figures and HTML reports, and the summaries of metrics that they show."""
