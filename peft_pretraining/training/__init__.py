"""The training of a run: its updates, evaluation, schedule, and what is logged of them."""
