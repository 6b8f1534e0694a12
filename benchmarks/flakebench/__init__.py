"""FlakeFS measured beside its baselines, in the same run: a machine's speed may halve from one minute to the next."""
