"""Fine-tuning with the optimizers of this package: sentence classification (GLUE) and prompt/response pairs."""
