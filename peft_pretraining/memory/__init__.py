"""Predicts the memory of a training run: python -m peft_pretraining.memory."""
