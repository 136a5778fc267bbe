"""Training: the loop, the optimiser, checkpoints, processes and the log."""
