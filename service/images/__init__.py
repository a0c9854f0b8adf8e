"""Decode image files to pixels, and letterbox pixels for a model."""
