"""Commands of `yolo-batch`, a module each; `service.cli` gathers them."""
