"""FlakeFS."""
