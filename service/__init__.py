"""YOLO26 on uploaded images: events in, detections out."""
