"""The only modules that call Google Cloud."""
