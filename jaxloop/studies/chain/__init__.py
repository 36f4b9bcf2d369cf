"""Language models trained on their predecessors' text."""
