"""From pixels to detections: the model, how it is loaded, and the queue in front of it."""
