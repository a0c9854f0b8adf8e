"""Sources: a bucket and prefix with its own settings, for example a camera."""
