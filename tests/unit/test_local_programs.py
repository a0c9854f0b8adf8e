"""Where the stack's programs come from: wheels, the Google Cloud SDK, or a download."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devtools.local_stack import programs
from devtools.local_stack.emulator_jars import FIRESTORE, MIRROR_VARIABLE, PUBSUB, PublishedFile
from tests.fakes import PATIENCE_SECONDS

PUBSUB_JAR = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-9.9.9-all.jar"
FIRESTORE_JAR = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"


class Machine:
    """A PATH with nothing but what a test installs, and a cache that has every emulator."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.bin.mkdir()
        self.sdk = root / "sdk"
        (self.sdk / "lib" / "googlecloudsdk").mkdir(parents=True)

    def install_gcloud(self, *jars: str) -> None:
        write_program(self.sdk / "bin" / "gcloud", "")
        (self.bin / "gcloud").symlink_to(self.sdk / "bin" / "gcloud")
        for jar in jars:
            (self.sdk / jar).parent.mkdir(parents=True)
            (self.sdk / jar).touch()


def write_program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    def cached_jar(published: PublishedFile) -> Path:
        return Path("cache", published.name)

    new = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(new.bin))
    monkeypatch.setattr(programs, "cached_jar", cached_jar)
    return new


def jars() -> list[str]:
    found = programs.find_programs()
    return [str(found.pubsub_jar), str(found.firestore_jar)]


CACHED_PUBSUB = f"cache/{PUBSUB.name}"
CACHED_FIRESTORE = f"cache/{FIRESTORE.name}"


def test_wheels_bring_java_and_the_storage_server(machine: Machine) -> None:
    found = programs.find_programs()
    java = subprocess.run(
        [found.java, "-version"], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert java.stderr.startswith('openjdk version "25')
    assert os.access(found.storage_server, os.X_OK)


def test_emulators_of_the_sdk_come_first(machine: Machine) -> None:
    machine.install_gcloud(PUBSUB_JAR, FIRESTORE_JAR)
    assert jars() == [str(machine.sdk / PUBSUB_JAR), str(machine.sdk / FIRESTORE_JAR)]


def test_sdk_with_one_emulator_lacks_the_other(machine: Machine) -> None:
    machine.install_gcloud(FIRESTORE_JAR)
    assert jars() == [CACHED_PUBSUB, str(machine.sdk / FIRESTORE_JAR)]


def test_machine_without_gcloud_uses_the_cache(machine: Machine) -> None:
    assert jars() == [CACHED_PUBSUB, CACHED_FIRESTORE]


def test_wrapper_script_is_asked_for_the_sdk(machine: Machine) -> None:
    write_program(machine.bin / "gcloud", f"echo '{machine.sdk}'")
    assert programs.sdk_root() == machine.sdk


def test_broken_gcloud_means_no_sdk(machine: Machine) -> None:
    write_program(machine.bin / "gcloud", "exit 1")
    assert jars() == [CACHED_PUBSUB, CACHED_FIRESTORE]


def test_make_emulators_fails_with_a_message(tmp_path: Path) -> None:
    offline = {"PATH": "/nowhere", "XDG_CACHE_HOME": str(tmp_path), "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-m", "devtools.local_stack.programs"],
        env=os.environ | offline | {MIRROR_VARIABLE: "http://127.0.0.1:9"},
        capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "run: make emulators" in done.stderr
    assert "Traceback" not in done.stderr
