"""YOLO26 over uploaded pictures: events in, detections out."""
