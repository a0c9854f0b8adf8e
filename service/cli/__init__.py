"""Commands of `yolo-batch`, one module each; `service.cli.main` gathers them."""
