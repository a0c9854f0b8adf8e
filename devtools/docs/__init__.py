"""Generates the reference pages from the code, and draws the README's image."""
