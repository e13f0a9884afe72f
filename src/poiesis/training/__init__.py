"""Training: the engine, optimizers, moving averages, checkpoints, trackers."""
