"""`yolo-batch check-model`: whether the service would start with a model, and which one."""

import time
from dataclasses import replace
from pathlib import Path

import click

from service.settings import Settings


@click.command("check-model")
@click.argument("path", required=False, type=click.Path(path_type=Path))
def check_model(path: Path | None) -> None:
    """Load the model at PATH, or at MODEL_PATH, and try it as the service does at its start."""
    from service.inference.canary import NOT_COMPARED
    from service.inference.loading import load_model

    settings = Settings.from_env()
    if path:
        settings = replace(settings, model_path=path)
    started = time.monotonic()
    checked = load_model(settings)
    milliseconds = (time.monotonic() - started) * 1e3
    if checked.fallback:
        click.echo(f"Warning: {checked.fallback}", err=True)
    if checked.canary == NOT_COMPARED:
        click.echo(
            "Warning: the canary ran, but was not compared: "
            "IMAGE_SIZE is not the one of the export",
            err=True,
        )
    info = checked.detector.info
    click.echo(
        f"model      {info.name}\n"
        f"precision  {info.precision}\n"
        f"sha256     {info.sha256}\n"
        f"runtime    {info.runtime}\n"
        f"image size {info.image_size}\n"
        f"loaded and checked in {milliseconds:.0f} ms"
    )
