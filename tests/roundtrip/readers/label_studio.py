"""Run with the Python of label-studio-sdk: validates tasks, and converts them to COCO.

Arguments: folder with `tasks.json` and `config.xml`. Prints JSON.
"""

import json
import sys
import tempfile
from pathlib import Path

from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface


def main() -> None:
    folder = Path(sys.argv[1])
    config = (folder / "config.xml").read_text(encoding="utf-8")
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    interface = LabelInterface(config)
    interface.validate()
    errors = []
    for task in tasks:
        assert task["data"].get("image")
        for prediction in task["predictions"]:
            errors += interface.validate_prediction(prediction, return_errors=True)
    labels = {name: list(found) for name, found in interface.parse(config)[2].items()}
    report = {"errors": errors, "labels": labels, "coco": coco_of(config, tasks)}
    print(json.dumps(report))


def coco_of(config: str, tasks: list[dict]) -> dict:  # type: ignore[type-arg]
    """The COCO file of a project in which a person accepted all predictions."""
    for number, task in enumerate(tasks, 1):
        [prediction] = task.pop("predictions")
        task |= {"id": number, "annotations": [{"id": number, "result": prediction["result"]}]}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "project.json")
        source.write_text(json.dumps(tasks), encoding="utf-8")
        converter = Converter(config, folder, download_resources=False)
        converter.convert_to_coco(str(source), folder, is_dir=False)
        result: dict = json.loads(Path(folder, "result.json").read_text(encoding="utf-8"))  # type: ignore[type-arg]
    return result


main()
