//! Optimiser, schedule, checkpoints, the training loop.
