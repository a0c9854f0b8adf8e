"""Commands of `yolo-batch-dev`, one module each. `devtools.cli.main` is the command line."""
