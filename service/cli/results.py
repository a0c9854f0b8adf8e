"""`yolo-batch results`: documents as a table, as JSON, or in the format of another tool."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from service.cli.commands import command, option
from service.cli.exit_codes import ExitCode
from service.cli.options import json_lines_option, objects_argument
from service.cli.output import is_terminal, note, progress, say, say_json
from service.errors import ResultObjectError
from service.result_exports.formats import FORMATS
from service.settings import Settings

if TYPE_CHECKING:
    from service.result_exports.exporting import Tally
    from service.result_exports.records import ExportOptions
    from service.result_exports.selection import Selection
    from service.result_filter import ResultFilter

_EXPORT = "Export"
_CALL_SECONDS = 60.0  # Firestore is retried longer than in the service, which has a deadline


def _category_ids(
    ctx: click.Context, param: click.Parameter, value: Path | None
) -> dict[str, int] | None:
    """Return the ids of a JSON file that maps labels to whole numbers.

    Raises:
        click.BadParameter: the file has another form.
    """
    if value is None:
        return None
    try:
        ids = json.loads(value.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise click.BadParameter(f"{value} is not JSON: {exc}", ctx, param) from exc
    is_map = isinstance(ids, dict) and all(type(number) is int for number in ids.values())
    if not is_map or len(set(ids.values())) < len(ids):
        raise click.BadParameter(
            f"{value} must be an object of labels, each with another whole number", ctx, param
        )
    return dict(ids)


@command(
    panel="Data",
    examples=[
        "yolo-batch results gs://my-bucket/2026/",
        "yolo-batch results gs://my-bucket --json > results.jsonl",
        "yolo-batch results gs://my-bucket/cam1/ --export csv --output cam1",
    ],
)
@objects_argument
@json_lines_option("each document")
@option(
    "--export",
    "format_name",
    panel=_EXPORT,
    type=click.Choice(list(FORMATS)),
    metavar="FORMAT",
    help=f"Write files in this format: {', '.join(FORMATS)}.",
)
@option(
    "--output",
    panel=_EXPORT,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the export. It must not exist, or be empty.  [default: export-FORMAT]",
)
@option(
    "--min-confidence",
    panel=_EXPORT,
    type=click.FloatRange(0, 1),
    help="Export every recorded detection with at least this confidence, also faint ones.  "
    "[default: the detections that the service kept]",
)
@option("--label", "labels", panel=_EXPORT, multiple=True, help="Only this label. Repeatable.")
@option(
    "--with-confidence",
    panel=_EXPORT,
    is_flag=True,
    help="yolo: add the confidence as a last column.",
)
@option(
    "--category-ids",
    panel=_EXPORT,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    callback=_category_ids,
    help="coco: JSON file with the id of each label.  [default: the model's class id + 1]",
)
@option(
    "--image-url-prefix",
    panel=_EXPORT,
    default="/data/local-files/?d=",
    show_default=True,
    help="label-studio: text before each image's path.",
)
@option(
    "--images",
    "with_images",
    panel=_EXPORT,
    is_flag=True,
    help="Also fetch the images' files: redacted copies where a document has one.",
)
@option(
    "--resume",
    panel=_EXPORT,
    is_flag=True,
    help="Continue an export that was interrupted. Repeat its other options.",
)
def results(
    uri: tuple[str, str],
    as_json: bool,
    format_name: str | None,
    output: Path | None,
    min_confidence: float | None,
    labels: tuple[str, ...],
    with_confidence: bool,
    category_ids: dict[str, int] | None,
    image_url_prefix: str,
    with_images: bool,
    resume: bool,
) -> ExitCode:
    """Print the documents of a bucket or prefix from Firestore, or export them.

    Large results are in objects of RESULTS_BUCKET. With --json, their detections are read from
    there, and `derived` has the addresses of the derived images.

    An export is a folder. Most formats leave out images without a result. The command prints what
    was left out.
    """
    if format_name is None:
        _print(uri, as_json=as_json)
        return ExitCode.DONE
    from service.result_exports.records import ExportOptions
    from service.result_exports.selection import Selection
    from service.result_filter import Order, ResultFilter

    return _export(
        ResultFilter(order=Order.NAME, bucket=uri[0], prefix=uri[1] or None),
        format_name,
        output or Path(f"export-{format_name}"),
        Selection(min_confidence, labels=frozenset(labels) or None),
        ExportOptions(with_confidence, category_ids, image_url_prefix, with_images),
        with_images=with_images,
        is_resumed=resume,
    )


def _print(uri: tuple[str, str], *, as_json: bool) -> None:
    from service.cli.report import no_results_note, say_results
    from service.gcp.clients import build_large_results, build_reader

    settings = Settings.from_env()
    bucket, prefix = uri
    count = 0

    def documents() -> Iterator[dict[str, Any]]:
        nonlocal count
        is_streaming = as_json and is_terminal(sys.stdout)
        with progress("Reading results", is_shown=not is_streaming) as bar:
            for document in build_reader(settings).results(bucket, prefix):
                count += 1
                bar.describe(f"Reading results: {count:,}")
                yield document

    if as_json:
        large_results = build_large_results(settings)
        for document in documents():
            try:
                say_json(document | {"detections": large_results.read(document)})
            except ResultObjectError as exc:
                note(f"Warning: {document['uri']} is printed as it is in Firestore. {exc}")
                say_json(document)
    else:
        say_results(documents())
    if not count:
        note(no_results_note(bucket, prefix))


def _export(
    chosen: "ResultFilter",
    format_name: str,
    folder: Path,
    selection: "Selection",
    options: "ExportOptions",
    *,
    with_images: bool,
    is_resumed: bool,
) -> ExitCode:
    from dataclasses import replace

    from service.cli.report import no_results_note
    from service.gallery.build import build_sources
    from service.gcp.clients import (
        build_large_results,
        build_pages,
        build_result_objects,
        build_storage,
    )
    from service.result_exports.exporting import Tally, exported_images, write_export
    from service.result_exports.folder import ExportFolder
    from service.result_exports.images import ImageFiles, StoredFiles
    from service.result_exports.names import FileNames
    from service.result_exports.selection import Selection

    _require_module(format_name)
    settings = replace(Settings.from_env(), firestore_timeout_seconds=_CALL_SECONDS)
    writer = FORMATS[format_name].writer(options)
    request = _request(chosen, format_name, selection, options, with_images=with_images)
    with ExitStack() as open_parts, progress("Exporting") as bar:
        target = ExportFolder(folder)
        open_parts.callback(target.close)
        cursor: str | None = None
        state: dict[str, Any] = {}
        if is_resumed:
            cursor, state = target.resume(request)
        else:
            target.begin(request)
        if cursor is None:
            writer.begin(target)
        else:
            writer.restore(state["writer"])
        files = None
        if with_images:
            stored = StoredFiles(
                build_storage(settings), build_result_objects(settings), build_sources(settings)
            )
            files = ImageFiles(target, stored)
            open_parts.callback(files.close)
        tally = Tally(**state.get("tally", {}))
        images = exported_images(
            build_pages(settings).stream(chosen, cursor),
            FileNames(target),
            selection,
            build_large_results(settings).read,
        )
        write_export(
            images,
            writer,
            target,
            target,
            lambda image: bar.describe(f"Exporting: {tally.images:,} images"),
            files=files,
            tally=tally,
        )
        target.finish()
    if not tally.images and chosen.bucket:
        note(no_results_note(chosen.bucket, chosen.prefix or ""))
    if format_name == "jsonl" and selection != Selection():
        note("jsonl has the documents unchanged: --min-confidence and --label do not apply to it.")
    return _report(tally, writer.notes(), folder)


def _require_module(format_name: str) -> None:
    """Check that the format's module is installed.

    Raises:
        click.UsageError: it is not.
    """
    chosen = FORMATS[format_name]
    if not chosen.is_available:
        raise click.UsageError(
            f"The format {format_name} needs {chosen.module}. Install it: "
            f"pip install 'yolo-batch[{chosen.extra}]'"
        )


def _request(
    chosen: "ResultFilter",
    format_name: str,
    selection: "Selection",
    options: "ExportOptions",
    *,
    with_images: bool,
) -> dict[str, Any]:
    """Return what identifies an export, as JSON."""
    from dataclasses import asdict

    return {
        "filter": chosen.arguments(),
        "format": format_name,
        "options": asdict(options),
        "selection": [selection.min_confidence, sorted(selection.labels or ())],
        "images": with_images,
    }


def _report(tally: "Tally", notes: Sequence[str], folder: Path) -> ExitCode:
    """Print what an export has, and what it lacks. Return the command's exit code."""
    for text in notes:
        note(text)
    if tally.unreadable:
        note(f"{tally.unreadable:,} documents are unreadable. Perhaps somebody has edited them.")
    say(
        f"{tally.images:,} images with {tally.detections:,} detections are in {folder}/"
        + (f" ({tally.failed:,} without a result)" if tally.failed else "")
    )
    if tally.missing:
        from service.result_exports.images import MISSING

        note(f"{tally.missing:,} files of images are missing: see {folder / MISSING}.")
        return ExitCode.NOT_ALL_DONE
    return ExitCode.DONE
