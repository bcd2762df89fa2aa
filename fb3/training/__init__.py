"""Training: the loop, the optimizer, the tricks, and the run that holds them together."""
