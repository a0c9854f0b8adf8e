"""The demo model: a small YOLO26 network trained on pictures that this package draws."""
