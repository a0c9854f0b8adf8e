"""Commands of `yolo-batch`, a module each; `service.cli.main` gathers them."""
