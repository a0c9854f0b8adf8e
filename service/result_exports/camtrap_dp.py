"""Camtrap DP 1.0.2: a data package of deployments, media and observations of camera traps.

https://camtrap-dp.tdwg.org

A package needs the time and the place of each image. Images without one of them are left out, and
counted. What only a person knows is not invented: see `docs/how-to/export-label-tools.md`.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from service.domain import Detection, ImageResult
from service.result_exports.exported import plain_label, reason_of, shown_uri, usable_result
from service.result_exports.megadetector import relative_box
from service.result_exports.records import ExportedImage, ExportOptions, Output

VERSION = "1.0.2"
_SCHEMAS = f"https://raw.githubusercontent.com/tdwg/camtrap-dp/{VERSION}"
IMAGES = "images"  # folder of the images' files
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_PLACE_DECIMALS = 4  # of a degree: 11 metres. A camera's own readings differ by less.

_DEPLOYMENTS = """
    deploymentID locationID locationName latitude longitude coordinateUncertainty deploymentStart
    deploymentEnd setupBy cameraID cameraModel cameraDelay cameraHeight cameraDepth cameraTilt
    cameraHeading detectionDistance timestampIssues baitUse featureType habitat deploymentGroups
    deploymentTags deploymentComments
"""
_MEDIA = """
    mediaID deploymentID captureMethod timestamp filePath filePublic fileName fileMediatype exifData
    favorite mediaComments
"""
_OBSERVATIONS = """
    observationID deploymentID mediaID eventID eventStart eventEnd observationLevel observationType
    cameraSetupType scientificName count lifeStage sex behavior individualID
    individualPositionRadius individualPositionAngle individualSpeed bboxX bboxY bboxWidth
    bboxHeight classificationMethod classifiedBy classificationTimestamp classificationProbability
    observationTags observationComments
"""
TABLES: Mapping[str, Sequence[str]] = {  # the columns of each table, in the order of its schema
    "deployments": _DEPLOYMENTS.split(),
    "media": _MEDIA.split(),
    "observations": _OBSERVATIONS.split(),
}
_PEOPLE = {"person", "human", "people", "pedestrian"}
_VEHICLES = {"vehicle", "car", "truck", "bus", "motorcycle", "bicycle", "train", "boat", "airplane"}
_ANIMALS = {
    "animal", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe"
}  # fmt: skip
_MEDIA_TYPE = re.compile(r"(image|video|audio)/[\x21-\x7e]+")
_ALLOWED_PATH = re.compile(r"(?=^[^./~])(^((?!\.{2}).)*$).*$")  # of the media table's schema

# Spreadsheets can run a cell that begins with one of these. The last four are full-width forms.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")

Row = dict[str, Any]


@dataclass
class Deployment:
    """The images of a source that were taken at one place. Times are those of its images."""

    id: str
    latitude: float
    longitude: float
    start: datetime
    end: datetime

    def row(self) -> Row:
        """Return the row of the table."""
        return {
            "deploymentID": self.id,
            "latitude": self.latitude,
            "longitude": self.longitude,
            "deploymentStart": _time(self.start),
            "deploymentEnd": _time(self.end),
            "deploymentComments": "Start and end are the times of the first and the last image.",
        }


def deployment_of(image: ExportedImage) -> Deployment | None:
    """Return the deployment of one image, or None if its time or its place is not known."""
    captured_at, place = image.document.get("captured_at"), _place(image.document.get("location"))
    if not isinstance(captured_at, datetime) or place is None:
        return None
    source = image.document.get("source")
    source_id = source.get("id") if isinstance(source, dict) else None
    name = source_id if isinstance(source_id, str) else str(image.document.get("bucket"))
    latitude, longitude = place
    deployment_id = f"{_cell(name)}@{latitude:.4f},{longitude:.4f}"
    return Deployment(deployment_id, latitude, longitude, captured_at, captured_at)


def media_row(image: ExportedImage, deployment: Deployment, *, with_files: bool) -> Row | None:
    """Return the row of an image, or None if no image may be seen.

    Args:
        image: of the export.
        deployment: of the image.
        with_files: whether the image's file is at its path in the package. Otherwise the row has
            its `gs://` address.
    """
    uri = shown_uri(image.document)
    if uri is None:
        return None
    local = f"{IMAGES}/{image.path}"
    is_local = with_files and _ALLOWED_PATH.fullmatch(local)
    path = local if is_local else quote(uri, safe="/:").replace("..", "%2E%2E")
    return {
        "mediaID": image.document_id,
        "deploymentID": deployment.id,
        "timestamp": _time(deployment.start),
        "filePath": path,
        "filePublic": "false",
        "fileName": _cell(image.path.rsplit("/", 1)[-1]),
        "fileMediatype": _media_type(image),
        "mediaComments": "" if usable_result(image) else _cell(reason_of(image)),
    }


def observation_rows(image: ExportedImage, deployment: Deployment) -> Iterator[Row]:
    """Yield a row for each detection and each kept class, or one that says that nothing was found.

    An image without a result is `unclassified`. So is a label that is no animal, human or vehicle:
    the label is in `observationTags`.
    """
    result = usable_result(image)
    common = {
        "deploymentID": deployment.id,
        "mediaID": image.document_id,
        "eventStart": _time(deployment.start),
        "eventEnd": _time(deployment.start),
        "observationLevel": "media",
    }
    if not result:
        yield common | {
            "observationID": f"{image.document_id}-0",
            "observationType": "unclassified",
            "observationComments": _cell(reason_of(image)),
        }
        return
    common |= _classifier(image, result)
    found = [_detection(item, result) for item in result.detections]
    found += [_labelled(item.label, item.confidence) for item in result.classes]
    for number, row in enumerate(found or [{"observationType": "blank"}]):
        yield common | {"observationID": f"{image.document_id}-{number}"} | row


def package_of(deployments: Sequence[Deployment], created: datetime) -> dict[str, Any]:
    """Return the content of `datapackage.json`. `deployments` has at least one element."""
    longitudes = [item.longitude for item in deployments]
    latitudes = [item.latitude for item in deployments]
    west, east, south, north = (
        min(longitudes), max(longitudes), min(latitudes), max(latitudes),
    )  # fmt: skip
    corners = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "resources": [
            {
                "name": name,
                "path": f"{name}.csv",
                "profile": "tabular-data-resource",
                "format": "csv",
                "mediatype": "text/csv",
                "encoding": "utf-8",
                "schema": f"{_SCHEMAS}/{name}-table-schema.json",
            }
            for name in TABLES
        ],
        "profile": f"{_SCHEMAS}/camtrap-dp-profile.json",
        "name": "yolo-batch-export",
        "created": _time(created),
        "title": "Export of yolo-batch",
        "contributors": [{"title": "To be completed", "role": "contact"}],
        "description": "Detections by a model. A person must complete contributors and project.",
        "sources": [{"title": "yolo-batch"}],
        "project": {
            "title": "To be completed",
            "samplingDesign": "opportunistic",
            "captureMethod": ["activityDetection", "timeLapse"],
            "individualAnimals": False,
            "observationLevel": ["media"],
        },
        "coordinatePrecision": 10**-_PLACE_DECIMALS,
        "spatial": {
            "type": "Polygon",
            "bbox": [west, south, east, north],
            "coordinates": [corners],
        },
        "temporal": {
            "start": min(item.start for item in deployments).astimezone(UTC).date().isoformat(),
            "end": max(item.end for item in deployments).astimezone(UTC).date().isoformat(),
        },
        "taxonomic": [],
    }


class CamtrapWriter:
    """Writes a package. Its memory grows with the deployments, not with the images."""

    def __init__(self, options: ExportOptions) -> None:
        """Take the options."""
        self._with_files = options.with_images
        self._deployments: dict[str, Deployment] = {}
        self._left_out = 0

    def begin(self, output: Output) -> None:
        """Write the headers of the tables that grow with the images."""
        for table in ("media", "observations"):
            output.append(f"{table}.csv", _csv(table, [], with_header=True))

    def add(self, image: ExportedImage, output: Output) -> None:
        """Write the rows of an image."""
        deployment = deployment_of(image)
        media = deployment and media_row(image, deployment, with_files=self._with_files)
        if not deployment or not media:
            self._left_out += 1
            return
        output.append("media.csv", _csv("media", [media]))
        rows = observation_rows(image, deployment)
        output.append("observations.csv", _csv("observations", rows))
        known = self._deployments.setdefault(deployment.id, deployment)
        known.start = min(known.start, deployment.start)
        known.end = max(known.end, deployment.end)

    def finish(self, output: Output) -> None:
        """Write the deployments, and the package's description."""
        deployments = list(self._deployments.values())
        with output.create("deployments.csv") as file:
            rows = (deployment.row() for deployment in deployments)
            file.write(_csv("deployments", rows, with_header=True))
        if deployments:
            package = package_of(deployments, datetime.now(UTC))
            with output.create("datapackage.json") as file:
                file.write(json.dumps(package, indent=2, ensure_ascii=False).encode() + b"\n")

    def state(self) -> dict[str, Any]:
        """Return the deployments and the counter."""
        deployments = [
            [each.id, each.latitude, each.longitude, each.start.isoformat(), each.end.isoformat()]
            for each in self._deployments.values()
        ]
        return {"deployments": deployments, "left_out": self._left_out}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue behind an image."""
        self._left_out = state["left_out"]
        for name, latitude, longitude, *times in state["deployments"]:
            start, end = map(datetime.fromisoformat, times)
            self._deployments[name] = Deployment(name, latitude, longitude, start, end)

    def notes(self) -> Sequence[str]:
        """Return what was left out, and what a person must complete."""
        notes = []
        if self._left_out:
            notes.append(
                f"{self._left_out:,} images are left out: when or where they were taken is not "
                "known, or no image may be shown."
            )
        if self._deployments:
            notes.append("Complete `contributors` and `project` in datapackage.json.")
        else:
            notes.append("No image has a time and a place, so there is no datapackage.json.")
        return notes


def observation_type(label: str) -> str:
    """Return the kind of observation that a label is."""
    word = label.strip().lower()
    if word in _ANIMALS:
        return "animal"
    if word in _PEOPLE:
        return "human"
    return "vehicle" if word in _VEHICLES else "unclassified"


def _detection(item: Detection, result: ImageResult) -> Row:
    row = _labelled(item.label, item.confidence)
    if not result.image_info:
        return row
    x, y, width, height = relative_box(item.box, result.image_info)
    if width <= 0 or height <= 0:  # the schema refuses an empty box
        return row
    return row | {"bboxX": x, "bboxY": y, "bboxWidth": width, "bboxHeight": height}


def _labelled(label: str, confidence: float) -> Row:
    # Values of a list are separated by `|`.
    tag = _one_line(plain_label(label)).replace("|", " ")
    return {
        "observationType": observation_type(label),
        "count": 1,
        "classificationProbability": confidence,
        "observationTags": f"label:{tag}",
    }


def _classifier(image: ExportedImage, result: ImageResult) -> Row:
    created_at = image.document.get("created_at")
    return {
        "classificationMethod": "machine",
        "classifiedBy": _cell(result.model.name) if result.model else "",
        "classificationTimestamp": _time(created_at) if isinstance(created_at, datetime) else "",
    }


def _csv(table: str, rows: Iterable[Row], *, with_header: bool = False) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, TABLES[table], restval="", lineterminator="\n")
    if with_header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _media_type(image: ExportedImage) -> str:
    declared = image.document.get("content_type")
    if isinstance(declared, str) and _MEDIA_TYPE.fullmatch(declared):
        return declared
    info = image.result.image_info if image.result else None
    name = re.sub("[^a-z0-9.+-]", "", info.format.lower()) if info else ""
    return f"image/{name}" if name else "image/*"


def _place(value: Any) -> tuple[float, float] | None:
    """Return latitude and longitude in degrees, or None if the value is no place on Earth."""
    try:
        latitude, longitude = float(value.latitude), float(value.longitude)
    except (AttributeError, TypeError, ValueError):
        return None
    if not (math.isfinite(latitude) and math.isfinite(longitude)):
        return None
    if abs(latitude) > 90 or abs(longitude) > 180:
        return None
    # Adding zero makes 0.0 of -0.0, so that both have one deployment.
    return round(latitude, _PLACE_DECIMALS) + 0.0, round(longitude, _PLACE_DECIMALS) + 0.0


def _time(value: datetime) -> str:
    return value.astimezone(UTC).strftime(_TIME)


def _one_line(text: str) -> str:
    """Return a text without control characters, which break a table's rows in some readers."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029]", " ", text)


def _cell(text: str) -> str:
    """Return a text of one line that no spreadsheet runs as a formula."""
    line = _one_line(text)
    return f"'{line}" if line.startswith(_FORMULA) else line
