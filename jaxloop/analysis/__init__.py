"""From a run's tables to scores, figures and pages; imports no model."""
