"""The HTTP server: routes, start and shutdown, log lines."""
