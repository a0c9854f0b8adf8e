"""The chaos run: uploads under faults, and the audit of what became of each of them."""
