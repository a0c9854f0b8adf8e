"""Commands of `yolo-batch`, one module each. `service.cli.main` is the command line."""
