"""`yolo-batch gallery`: look at results in a browser."""

import os
import signal
import webbrowser
from dataclasses import replace

import click

from service.cli.commands import command, option
from service.cli.output import note, say
from service.settings import Settings

_CALL_SECONDS = 20.0  # for a page: a large collection in the emulator takes seconds


@command(
    panel="Data",
    examples=["yolo-batch gallery", "yolo-batch gallery --topic jobs --open"],
)
@option(
    "--port",
    default=0,
    type=click.IntRange(0, 65535),
    help="Port to listen on, on this machine only.  [default: a free port]",
)
@option(
    "--topic",
    help="Topic of the jobs, or projects/PROJECT/topics/NAME. With it, a failed image has the "
    "button 'Try again'.  [default: no button]",
)
@option("--open", "is_opened", is_flag=True, help="Open the address in your browser.")
@option(
    "--verdicts-database",
    help="Firestore database of the verdicts.  [default: yolo-batch-verdicts]",
)
def gallery(port: int, topic: str | None, is_opened: bool, verdicts_database: str | None) -> None:
    """Show the results in a browser, until Ctrl-C.

    Prints an address with a token. Only a browser on this machine that opens it can see the pages.
    Your own credentials read the results, the derived images and the uploads.

    These settings of the service apply, as environment variables: GOOGLE_CLOUD_PROJECT,
    FIRESTORE_DATABASE, FIRESTORE_COLLECTION, RESULTS_BUCKET, ALLOWED_BUCKETS.
    """
    # A shell starts background jobs with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    show(port, topic=topic, is_opened=is_opened, verdicts_database=verdicts_database)


def show(
    port: int = 0,
    *,
    topic: str | None = None,
    is_opened: bool = False,
    verdicts_database: str | None = None,
) -> None:
    """Serve the gallery until Ctrl-C. The arguments are those of the command.

    Raises:
        PortError: another program has the port.
        CredentialsError: no credentials, or no project.
        SettingsError: an environment variable has a wrong value.
    """
    from service.gallery.access import LocalAccess
    from service.gallery.app import create_app
    from service.gallery.build import build_gallery
    from service.gallery.serve import HOST, bind, serve
    from service.gallery.settings import GallerySettings

    settings = replace(Settings.from_env(), firestore_timeout_seconds=_CALL_SECONDS)
    own = GallerySettings.from_env()
    own = replace(
        own,
        jobs_topic=topic or own.jobs_topic,
        verdicts_database=verdicts_database or own.verdicts_database,
    )
    listener = bind(port)
    access = LocalAccess(listener.getsockname()[1])
    is_emulator = bool(os.environ.get("FIRESTORE_EMULATOR_HOST"))
    parts = build_gallery(settings, own, access, is_emulator=is_emulator)
    address = f"http://{HOST}:{listener.getsockname()[1]}{access.first_path}"
    say(address)
    note("Open this address in a browser. Ctrl-C ends the gallery.")
    if is_opened:
        webbrowser.open(address)
    server = serve(create_app(parts), listener)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
        parts.images.close()
