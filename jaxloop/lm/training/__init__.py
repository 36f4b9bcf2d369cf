"""Training: batches, loss, the step, how many chains fit in a program."""
