"""The formats of an export, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from service.result_exports.coco_format import CocoWriter
from service.result_exports.csv_format import CsvWriter
from service.result_exports.jsonl_format import JsonlWriter
from service.result_exports.records import ExportOptions, Writer


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        writer: makes the writer of one export.
        description: what the format is for, in a few words.
        module: the module that it needs. None: no further module.
        extra: the extra of yolo-batch that installs the module.
    """

    writer: Callable[[ExportOptions], Writer]
    description: str
    module: str | None = None
    extra: str | None = None

    @property
    def is_available(self) -> bool:
        """Whether the module that the format needs is installed."""
        return self.module is None or find_spec(self.module) is not None


FORMATS: dict[str, Format] = {
    "csv": Format(CsvWriter, "one row for each detection, for spreadsheets"),
    "coco": Format(CocoWriter, "boxes, masks and keypoints, for most label tools"),
    "jsonl": Format(JsonlWriter, "one document a line, with every field"),
}
