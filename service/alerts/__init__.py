"""Alert rules: which images match, what is published, and when."""
