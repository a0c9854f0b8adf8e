"""`yolo-batch check-model`: whether the service would start with a model."""

import time
from dataclasses import replace
from pathlib import Path

import click

from service.cli.commands import argument, command
from service.cli.options import json_option
from service.cli.output import note, progress, say, say_json
from service.settings import Settings


@command(
    "check-model",
    panel="Models",
    examples=[
        "yolo-batch check-model my_openvino_model",
        "# the model that the service would load",
        "MODEL_PATH=my_openvino_model yolo-batch check-model --json",
    ],
)
@argument(
    "path",
    required=False,
    type=click.Path(path_type=Path),
    help="Directory of an exported model, or a model file. By default, the model at MODEL_PATH.",
)
@json_option("model, fallback, canary, milliseconds")
def check_model(path: Path | None, as_json: bool) -> None:
    """Verify that the service would start with a model.

    Loads the model and runs it on its canary images, as the service does when it starts.
    """
    settings = Settings.from_env()
    if path:
        settings = replace(settings, model_path=path)
    started = time.monotonic()
    with progress("Loading the model"):
        from service.inference.canary import NOT_COMPARED
        from service.inference.loading import load_model

        verified = load_model(settings)
    milliseconds = (time.monotonic() - started) * 1e3
    if verified.fallback:
        note(f"Warning: {verified.fallback}")
    if verified.canary == NOT_COMPARED:
        note(
            "Warning: the canary ran, but was not compared: IMAGE_SIZE differs from the image "
            "size of the export."
        )
    info = verified.detector.info
    if as_json:
        say_json(
            {
                "model": {
                    "name": info.name,
                    "task": str(info.task),
                    "version": info.version,
                    "precision": info.precision,
                    "sha256": info.sha256,
                    "runtime": info.runtime,
                    "image_size": info.image_size,
                },
                "fallback": verified.fallback,
                "canary": verified.canary,
                "milliseconds": round(milliseconds),
            }
        )
        return
    say(
        f"model      {info.name}\n"
        f"task       {info.task}\n"
        + (f"version    {info.version}\n" if info.version else "")
        + f"precision  {info.precision}\n"
        f"sha256     {info.sha256}\n"
        f"runtime    {info.runtime}\n"
        f"image size {info.image_size}\n"
        f"loaded and verified in {milliseconds:.0f} ms"
    )
