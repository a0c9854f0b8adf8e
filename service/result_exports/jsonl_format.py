"""The format `jsonl`: each document as a line of JSON, as `results --json` prints it."""

from service.result_exports.records import ExportedImage, Output, Stateless
from service.stored_json import json_line

FILE = "results.jsonl"


class JsonlWriter(Stateless):
    """Writes one line for each image, also for those that failed."""

    def add(self, image: ExportedImage, output: Output) -> None:
        """Write one line."""
        line = json_line(dict(image.document) | {"file": image.path})
        output.append(FILE, f"{line}\n".encode())
