"""The demo model: a small YOLO26 network trained on images that this package draws."""
