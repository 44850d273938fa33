"""The LLaMA that is trained: its shape, attention, loss, and how it is exported."""
