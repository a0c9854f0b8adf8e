"""The demo model: a small YOLO26 model trained on images that this package draws."""
