"""Units of memory: binary ones everywhere, as the capacities of GPUs and the messages of torch are."""

MIB = 2**20
GIB = 2**30
