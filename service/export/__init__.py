"""Export weights to a model that the service runs. Needs the extra `export`."""
