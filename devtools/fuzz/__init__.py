"""Fuzz the parsers of untrusted input, guided by coverage."""
