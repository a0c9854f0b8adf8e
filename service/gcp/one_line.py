"""Text of Google's services for a log line or a document."""


def one_line(text: str, max_chars: int) -> str:
    """Return text as one line: no unprintable characters, single spaces, at most `max_chars`."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:max_chars]
