"""Draw an image for the documentation: an annotated upload beside its Firestore document.

Both are from a real run against the local stack. The images are two of the demo's samples:

    yolo-batch-dev demo --images 07.jpg
    python -m devtools.docs.readme_image 07.jpg demo-output/documents.jsonl docs/images/overview.png
    yolo-batch-dev demo --task segment --images 06.jpg
    python -m devtools.docs.readme_image 06.jpg demo-output/documents.jsonl docs/images/segment.png

The fields are listed by name with their types, like in Firestore's console.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

WIDTH = 1640  # pixels. The README shows about half of that.
MARGIN = 28
GAP = 28
LEFT_WIDTH = 624
LINE_HEIGHT = 36
INDENT = 30
RADIUS = 18
COLOURS = 160  # size of the palette. A small palette keeps the file small.

WHITE = (255, 255, 255)
INK = (32, 33, 36)
MUTED = (110, 116, 124)
LINE = (208, 212, 218)
HEADER = (243, 245, 248)
BLUE = (23, 92, 211)
GREEN = (19, 115, 51)
DARK = (24, 28, 36)
LABEL_COLOURS = {
    "circle": (13, 110, 180),
    "cross": (190, 70, 0),
    "heart": (190, 20, 90),
    "square": (0, 120, 100),
    "star": (13, 110, 180),
    "triangle": (120, 50, 190),
}
SHOWN_FIELDS = (
    "counts", "created_at", "detections", "error", "image", "labels", "max_confidence",
    "model", "num_detections", "status", "task", "uri",
)  # fmt: skip

Colour = tuple[int, int, int]


def main(image_file: Path, document_file: Path, output: Path) -> None:
    """Write the image as a PNG with a palette.

    Args:
        image_file: the image that was uploaded.
        document_file: its document, as `yolo-batch results --json` prints it.
        output: where the PNG is written.
    """
    document = json.loads(document_file.read_text())
    lines = field_lines(document)
    image = annotated(image_file, document)
    height = 2 * MARGIN + 74 + max(len(lines) * LINE_HEIGHT + 34, image.height + GAP)
    canvas = Image.new("RGB", (WIDTH, height), WHITE)
    draw = ImageDraw.Draw(canvas)
    draw_upload(canvas, draw, image, document)
    draw_document(draw, document, lines, height)
    palette = canvas.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    output.parent.mkdir(parents=True, exist_ok=True)
    palette.save(output, optimize=True)


def font(size: int) -> Any:
    """Return Pillow's own font at a size in pixels, so that no font has to be installed."""
    return ImageFont.load_default(size)


def annotated(image_file: Path, document: Mapping[str, Any]) -> Image.Image:
    """Return the image, LEFT_WIDTH pixels wide, with the document's detections on it."""
    image = Image.open(image_file).convert("RGB")
    scale = LEFT_WIDTH / image.width
    image = image.resize((LEFT_WIDTH, round(image.height * scale)), Image.Resampling.LANCZOS)
    image = image.filter(ImageFilter.MedianFilter(5))  # the drawn noise does not compress
    draw = ImageDraw.Draw(image)
    plates: list[tuple[int, int, int, int]] = []
    for detection in document["detections"]:
        colour = LABEL_COLOURS[detection["label"]]
        if detection.get("polygons"):
            draw_mask(image, detection, colour, scale)
            continue
        edges = [round(detection["box"][edge] * scale) for edge in ("x1", "y1", "x2", "y2")]
        draw.rectangle(edges, outline=colour, width=5)
    for detection in document["detections"]:
        colour = LABEL_COLOURS[detection["label"]]
        corners = [round(detection["box"][edge] * scale) for edge in ("x1", "y1", "x2", "y2")]
        text = f"{detection['label']} {detection['confidence']:.2f}"
        width = round(draw.textlength(text, font(27))) + 20
        left = max(min(corners[0], LEFT_WIDTH - width), 0)
        above, below = max(corners[1] - 40, 0), min(corners[3], image.height - 40)
        top = above if not _overlaps(plates, left, above, width) else below
        plates.append((left, top, left + width, top + 40))
        draw.rectangle(plates[-1], fill=colour)
        draw.text((left + 10, top + 20), text, WHITE, font(27), anchor="lm")
    return image


def draw_mask(
    image: Image.Image, detection: Mapping[str, Any], colour: Colour, scale: float
) -> None:
    """Draw a detection's mask, translucent and with its outline, in place."""
    mask = Image.new("1", image.size)
    rings = [[value * scale for value in ring["points"]] for ring in detection["polygons"]]
    for ring in rings:
        filled = Image.new("1", image.size)
        ImageDraw.Draw(filled).polygon(ring, fill=1)
        mask = ImageChops.logical_xor(mask, filled)  # the even-odd rule
    image.paste(Image.blend(image, Image.new("RGB", image.size, colour), 0.45), mask=mask)
    for ring in rings:
        ImageDraw.Draw(image).line([*ring, *ring[:4]], colour, 5, joint="curve")


def field_lines(document: Mapping[str, Any]) -> list[tuple[int, str, str, str]]:
    """List the document's fields as lines: (depth, name, value, type).

    `counts` and the first detection are expanded.
    """
    lines: list[tuple[int, str, str, str]] = []
    for name in sorted(SHOWN_FIELDS):
        value = document[name]
        if name == "counts":
            lines.append((0, name, "", "map"))
            lines += [(1, label, str(count), "number") for label, count in sorted(value.items())]
        elif name == "detections":
            first = value[0]
            lines.append((0, name, f"{len(value)} elements", "array"))
            lines += [
                (1, "0", "", "map"),
                *([(2, "area", f"{first['area']:.1f}", "number")] if "area" in first else []),
                (2, "box", _inline(first["box"]), "map"),
                (2, "class_id", str(first["class_id"]), "number"),
                (2, "confidence", f"{first['confidence']:.4f}", "number"),
                (2, "label", f'"{first["label"]}"', "string"),
            ]
            for number, ring in enumerate(first.get("polygons") or ()):
                points = ", ".join(f"{value:.1f}" for value in ring["points"][:4])
                lines += [(2, "polygons", "", "array")] * (number == 0)
                text = f"{{points: [{points}, ... {len(ring['points'])} numbers]}}"
                lines.append((3, str(number), text, "map"))
            lines += [(1, str(n), _summary(item), "map") for n, item in enumerate(value) if n]
        elif name == "model":
            shown = {key: value[key] for key in ("name", "precision", "image_size")}
            lines.append((0, name, _inline(shown)[:-1] + ", ...}", "map"))
        else:
            lines.append((0, name, _shown(value), _type(name, value)))
    lines.append((0, "", f"and {len(document) - len(SHOWN_FIELDS)} more fields", ""))
    return lines


def draw_upload(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    image: Image.Image,
    document: Mapping[str, Any],
) -> None:
    """Draw the left column: the command that uploads, and the annotated image."""
    left, right = MARGIN, MARGIN + LEFT_WIDTH
    file = document["name"].rpartition("/")[2]
    folder = document["uri"].removesuffix(file)
    draw.rounded_rectangle((left, MARGIN, right, MARGIN + 74), RADIUS, fill=DARK)
    draw.text((left + 20, MARGIN + 37), "$", (125, 211, 160), font(26), anchor="lm")
    command = f"gcloud storage cp {file} {folder}"
    draw.text((left + 46, MARGIN + 37), command, WHITE, font(26), anchor="lm")
    top = MARGIN + 74 + GAP
    canvas.paste(image, (left, top))
    draw.rectangle((left, top, right - 1, top + image.height), outline=LINE, width=2)


def draw_document(
    draw: ImageDraw.ImageDraw,
    document: Mapping[str, Any],
    lines: list[tuple[int, str, str, str]],
    height: int,
) -> None:
    """Draw the right column: the document as Firestore's console lists it."""
    left, right = MARGIN + LEFT_WIDTH + GAP, WIDTH - MARGIN
    draw.rounded_rectangle((left, MARGIN, right, height - MARGIN), RADIUS, WHITE, LINE, 2)
    draw.rounded_rectangle(
        (left, MARGIN, right, MARGIN + 74), RADIUS, HEADER, LINE, 2,
        corners=(True, True, False, False),
    )  # fmt: skip
    draw.text((left + 24, MARGIN + 37), "Firestore  /  detections  /  one document", INK, font(28),
              anchor="lm")  # fmt: skip
    y = MARGIN + 74 + 17 + LINE_HEIGHT // 2
    for depth, name, value, kind in lines:
        x = left + 24 + depth * INDENT
        size = font(26)
        if name:
            draw.text((x, y), f"{name}:", BLUE, size, anchor="lm")
            x += round(draw.textlength(f"{name}: ", size)) + 4
        colour = {"string": GREEN, "": MUTED}.get(kind, INK)
        draw.text((x, y), value, colour, size, anchor="lm")
        draw.text((right - 20, y), kind, MUTED, font(22), anchor="rm")
        y += LINE_HEIGHT


def _overlaps(plates: list[tuple[int, int, int, int]], left: int, top: int, width: int) -> bool:
    return any(
        left < right and x < left + width and top < bottom and y < top + 40
        for x, y, right, bottom in plates
    )


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return _inline(value)
    if isinstance(value, list):
        return "[" + ", ".join(_shown(item) for item in value) + "]"
    return json.dumps(value)


def _inline(values: Mapping[str, Any]) -> str:
    shown = {n: f"{v:.1f}" if isinstance(v, float) else str(v) for n, v in sorted(values.items())}
    return "{" + ", ".join(f"{n}: {v}" for n, v in shown.items()) + "}"


def _summary(detection: Mapping[str, Any]) -> str:
    return f"{{label: {detection['label']}, confidence: {detection['confidence']:.2f}, ...}}"


def _type(name: str, value: Any) -> str:
    if name in ("created_at", "event_time"):
        return "timestamp"
    kinds = {str: "string", dict: "map", list: "array", type(None): "null"}
    return kinds.get(type(value), "number")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
