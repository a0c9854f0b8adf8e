"""What every export format gets: one image with its result, and where the format writes to."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

from service.domain import ImageResult


@dataclass(frozen=True)
class ExportedImage:
    """One image of an export.

    Attributes:
        document_id: id of the document.
        document: the document's fields. A person may have edited them.
        path: relative path of the image's file: safe, unique in the export, with `/`.
        result: the result of a done image, with the detections that the export has. None: the image
            failed, is parked, or its document is unreadable.
        note: why `result` is None, as a sentence. None for a done image.
    """

    document_id: str
    document: Mapping[str, Any]
    path: str
    result: ImageResult | None = None
    note: str | None = None


@dataclass(frozen=True)
class ExportOptions:
    """What a user chose.

    Attributes:
        with_confidence: yolo: a sixth column with the confidence.
        category_ids: coco: the id of each label. None: the model's class id + 1.
        image_url_prefix: label-studio: goes before the path of an image.
        with_images: whether the images' files are in the export's folder `images`.
    """

    with_confidence: bool = False
    category_ids: Mapping[str, int] | None = None
    image_url_prefix: str = "/data/local-files/?d="
    with_images: bool = False


class Output(Protocol):
    """Where a format writes to. Paths are relative, with `/`."""

    def append(self, path: str, data: bytes) -> None:
        """Append bytes to a file of the export."""

    def append_part(self, name: str, data: bytes) -> None:
        """Append bytes to a temporary file, which is not in the export."""

    def read_part(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open a temporary file. It is empty if nothing was appended."""

    def create(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a file of the export for writing, in `finish` only."""


class Writer(Protocol):
    """One format. An instance writes one export.

    Calls are `begin` once, `add` for each image, and `finish` once. After a crash, a new instance
    gets the `state` that was recorded behind an image, by `restore` in place of `begin`.
    """

    def begin(self, output: Output) -> None:
        """Write what precedes the images."""

    def add(self, image: ExportedImage, output: Output) -> None:
        """Write one image."""

    def finish(self, output: Output) -> None:
        """Write what follows the images."""

    def state(self) -> dict[str, Any]:
        """Return as JSON what the next image needs to know of the earlier ones."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue behind the image after which this state was recorded."""

    def notes(self) -> Sequence[str]:
        """Return sentences for the user: what was left out, and how often."""


@dataclass
class Stateless:
    """The parts of a writer that most formats share."""

    options: ExportOptions = field(default_factory=ExportOptions)

    def begin(self, output: Output) -> None:
        """Write nothing."""

    def finish(self, output: Output) -> None:
        """Write nothing."""

    def state(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing."""

    def notes(self) -> Sequence[str]:
        """Return nothing."""
        return ()
