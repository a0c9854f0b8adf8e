"""Fuzzing of the parsers, guided by coverage."""
