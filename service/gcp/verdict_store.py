"""What people judge about results: documents of a database of their own."""


class VerdictStore:
    """Reads and writes verdicts. Safe to use from many threads."""
