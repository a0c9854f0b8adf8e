"""The benchmark: the service's stages and its alternatives, measured in one run."""
