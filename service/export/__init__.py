"""Weights to what the service runs. Needs the extra `export`."""
