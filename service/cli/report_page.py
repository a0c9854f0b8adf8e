"""Serves the page of a report, until Ctrl-C."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from service.cli.output import note

if TYPE_CHECKING:
    from service.gallery.report import ReportImages


def serve_report(
    kind: str,
    report: Mapping[str, Any],
    *,
    port: int,
    images: "ReportImages | None" = None,
) -> None:
    """Serve a report on this machine, print its address, and return after Ctrl-C.

    Args:
        kind: the name of the command.
        report: the report as JSON.
        port: the port. 0: a free one.
        images: the images of the report.

    Raises:
        OSError: the port is in use, or this user may not use it.
    """
    from service.gallery import report as pages

    def announce(url: str) -> None:
        note(f"\nOpen {url}\nCtrl-C ends the page.")

    try:
        pages.serve_report(kind, report, port=port, announce=announce, images=images)
    except KeyboardInterrupt:
        note("The page has ended")
