"""Files to pixels, and pixels to what a model takes."""
