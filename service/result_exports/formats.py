"""The formats of an export, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from service.result_exports.camtrap_dp import CamtrapWriter
from service.result_exports.coco_format import CocoWriter
from service.result_exports.csv_format import CsvWriter
from service.result_exports.jsonl_format import JsonlWriter
from service.result_exports.label_studio import LabelStudioWriter
from service.result_exports.megadetector import MegaDetectorWriter
from service.result_exports.parquet_format import ParquetWriter
from service.result_exports.records import ExportOptions, Writer
from service.result_exports.yolo_format import YoloWriter


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        writer: makes the writer of one export.
        description: what the format is for, in a few words.
        module: the module that it needs. None: no further module.
        extra: the extra of yolo-batch that installs the module.
        file: the only file that an export has. None: it has several.
        is_written_at_once: whether each file is written by one call of `Output.append`. Such an
            export has many files.
    """

    writer: Callable[[ExportOptions], Writer]
    description: str
    module: str | None = None
    extra: str | None = None
    file: str | None = None
    is_written_at_once: bool = False

    @property
    def is_available(self) -> bool:
        """Whether the module that the format needs is installed."""
        return self.module is None or find_spec(self.module) is not None


FORMATS: dict[str, Format] = {
    "csv": Format(CsvWriter, "one row for each detection, for spreadsheets", file="detections.csv"),
    "coco": Format(
        CocoWriter, "boxes, masks and keypoints, for most labelling tools", file="annotations.json"
    ),
    "jsonl": Format(JsonlWriter, "one document a line, with every field", file="results.jsonl"),
    "parquet": Format(
        ParquetWriter, "tables of images and detections", module="pyarrow", extra="parquet"
    ),
    "yolo": Format(
        YoloWriter, "a label file for each image, for training", is_written_at_once=True
    ),
    "label-studio": Format(LabelStudioWriter, "tasks with predictions, and the configuration"),
    "megadetector": Format(
        MegaDetectorWriter,
        "boxes, for Timelapse and MegaDetector's tools",
        file="megadetector.json",
    ),
    "camtrap-dp": Format(CamtrapWriter, "a data package of camera traps, version 1.0.2"),
}
