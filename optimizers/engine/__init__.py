"""What every method shares: state, storage formats, execution, routing, distribution and saving."""
