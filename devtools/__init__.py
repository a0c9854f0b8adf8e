"""Tools for developers; neither in the wheel nor in the container."""
