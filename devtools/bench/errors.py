"""The error of the benchmark."""

from service.errors import YoloBatchError


class BenchError(YoloBatchError):
    """Something could not be measured. The message names it, and the reason."""
