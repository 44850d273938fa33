"""The processes of a run: how they meet, work together, and notice one that is lost."""
