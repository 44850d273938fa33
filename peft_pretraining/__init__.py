"""The pretraining harness: configuration, data, model, training loop, evaluation, checkpoints and reports."""
