"""Makes a text from Google's services fit into a log line or a document."""


def one_line(text: str, max_chars: int) -> str:
    """Return the text on one line, without unprintable characters, cut to `max_chars`."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:max_chars]
