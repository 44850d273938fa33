"""Mathematics shared by methods: moments, projections, blocks. Imports torch and the rule interface only."""
