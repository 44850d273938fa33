"""What a run leaves to be read: metrics.jsonl, its loss curve, and wandb."""
