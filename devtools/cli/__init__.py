"""The command line `yolo-batch-dev`, one module a command."""
