"""Serves the page of a report, until Ctrl-C."""

import contextlib
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
        PortError: the port is not free.
    """
    from service.gallery.access import LocalAccess
    from service.gallery.report import ReportParts, create_report_app
    from service.gallery.serve import HOST, bind, serve

    listener = bind(port)
    port = listener.getsockname()[1]
    access = LocalAccess(port, command=f"yolo-batch {kind}")
    server = serve(create_report_app(ReportParts(kind, report, access, images)), listener)
    note(f"\nOpen http://{HOST}:{port}{access.first_path}\nCtrl-C ends the page.")
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()
