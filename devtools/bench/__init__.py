"""The benchmark: measures the service, its stages and its alternatives in one run."""
