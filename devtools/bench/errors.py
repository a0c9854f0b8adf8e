"""What can keep the benchmark from measuring."""

from service.errors import YoloBatchError


class BenchError(YoloBatchError):
    """Something could not be measured; the message says what and why."""
