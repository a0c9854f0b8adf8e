"""Tools for developers. They are neither in the wheel nor in the container."""
