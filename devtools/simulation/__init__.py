"""A simulation of Pub/Sub push, Cloud Run and the service: `yolo-batch-dev simulate`."""
