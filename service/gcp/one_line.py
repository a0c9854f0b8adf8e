"""Makes a text from Google's services fit into a log line or a document."""


def one_line(text: str, max_chars: int) -> str:
    """Return the text as one line of printable characters, single spaces and this length."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:max_chars]
