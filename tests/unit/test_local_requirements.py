"""What is missing on a machine, and the command that installs it."""

import json
import struct
import zipfile
from pathlib import Path

import pytest

from devtools.local_stack import requirements
from devtools.local_stack.errors import MissingRequirementsError
from devtools.local_stack.requirements import FIRESTORE_MAIN_CLASS, Missing

PUBSUB_JAR = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-9.9.9-all.jar"
FIRESTORE_JAR = "platform/cloud-firestore-emulator/cloud-firestore-emulator.jar"


def write_program(path: Path, *, stderr: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{stderr}' >&2\n")
    path.chmod(0o755)


def write_jar(path: Path, main_class: str, *, java: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as jar:
        jar.writestr("META-INF/MANIFEST.MF", f"Manifest-Version: 1.0\nMain-Class: {main_class}\n")
        jar.writestr(
            main_class.replace(".", "/") + ".class", struct.pack(">IHH", 0xCAFEBABE, 0, java + 44)
        )


class Machine:
    """A PATH with nothing but what a test installs."""

    def __init__(self, root: Path) -> None:
        self.bin = root / "bin"
        self.bin.mkdir()
        self.sdk = root / "sdk"

    def install_java(self, version: str) -> None:
        write_program(self.bin / "java", stderr=f'openjdk version "{version}"')

    def install_gcloud(self, *, packaged: bool = False) -> None:
        write_program(self.sdk / "bin" / "gcloud")
        (self.bin / "gcloud").symlink_to(self.sdk / "bin" / "gcloud")
        config = self.sdk / "lib" / "googlecloudsdk" / "core" / "config.json"
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps({"disable_updater": packaged}))

    def install_emulators(self, *, java: int = 11) -> None:
        write_jar(self.sdk / PUBSUB_JAR, "com.google.Main", java=8)
        write_jar(self.sdk / FIRESTORE_JAR, FIRESTORE_MAIN_CLASS, java=java)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    new = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(new.bin))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    return new


def commands(found: list[Missing]) -> dict[str, str]:
    return {item.name: item.install_command for item in found}


def test_complete_machine_misses_nothing(machine: Machine) -> None:
    machine.install_java("17.0.15")
    machine.install_gcloud()
    machine.install_emulators()
    assert requirements.missing() == []
    programs = requirements.find_programs()
    assert programs.pubsub_jar == machine.sdk / PUBSUB_JAR
    assert programs.storage_server.name.startswith("fake-gcs-server")


def test_bare_machine_names_gcloud_and_java(machine: Machine) -> None:
    with pytest.raises(MissingRequirementsError) as caught:
        requirements.find_programs()
    _, gcloud, java = str(caught.value).splitlines()
    assert "gcloud components install pubsub-emulator cloud-firestore-emulator" in gcloud
    assert java == (
        "Java 11+: the emulators need Java 11 or newer, and none was found. "
        "Install: sudo apt-get install -y default-jre-headless"
    )


def test_emulators_come_from_the_component_manager(machine: Machine) -> None:
    machine.install_java("17.0.15")
    machine.install_gcloud()
    assert commands(requirements.missing()) == {
        "Pub/Sub emulator": "gcloud components install pubsub-emulator",
        "Firestore emulator": "gcloud components install cloud-firestore-emulator",
    }


def test_emulators_of_a_packaged_gcloud_are_packages(machine: Machine) -> None:
    machine.install_java("17.0.15")
    machine.install_gcloud(packaged=True)
    assert commands(requirements.missing()) == {
        "Pub/Sub emulator": "sudo apt-get install -y google-cloud-cli-pubsub-emulator",
        "Firestore emulator": "sudo apt-get install -y google-cloud-cli-firestore-emulator",
    }


def test_old_java_is_named_with_what_the_jars_need(machine: Machine) -> None:
    machine.install_java("17.0.15")
    machine.install_gcloud()
    machine.install_emulators(java=21)
    assert requirements.missing() == [
        Missing(
            "Java 21+",
            "the emulators need Java 21 or newer, and the one found is 17",
            "sudo apt-get install -y openjdk-21-jre-headless",
        )
    ]


def test_java_home_goes_before_the_path(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.install_java("1.8.0_292")
    machine.install_gcloud()
    machine.install_emulators()
    assert [item.name for item in requirements.missing()] == ["Java 11+"]
    write_program(tmp_path / "jdk" / "bin" / "java", stderr='openjdk version "21"')
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jdk"))
    assert requirements.missing() == []


@pytest.mark.parametrize(
    ("output", "major"),
    [
        pytest.param('openjdk version "17.0.15" 2025-04-15', 17, id="new"),
        pytest.param('java version "1.8.0_292"', 8, id="old"),
        pytest.param('Picked up _JAVA_OPTIONS: -Xmx1g\nopenjdk version "21"', 21, id="options"),
        pytest.param("Unable to locate a Java Runtime.", None, id="none"),
    ],
)
def test_java_major(output: str, major: int | None) -> None:
    assert requirements.java_major(output) == major
