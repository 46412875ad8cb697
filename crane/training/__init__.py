"""Training: the trainer, its checkpoints, the run folder, progress and report."""
