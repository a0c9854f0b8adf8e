"""The environment variables that `yolo-batch-dev up` prints."""

import configparser
import shlex
import subprocess
from pathlib import Path

import pytest

from devtools.local_stack.client_environment import (
    client_environment,
    export_lines,
    tool_environment,
    upload_command,
    upload_line,
)
from tests.fakes import PATIENCE_SECONDS


def clients() -> dict[str, str]:
    return client_environment(
        project="p1", pubsub_host="127.0.0.1:1", firestore_host="127.0.0.1:2",
        storage_url="http://127.0.0.1:3",
    )  # fmt: skip


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxy")
def test_clients_get_the_emulators_only() -> None:
    assert clients() == {
        "GOOGLE_CLOUD_PROJECT": "p1",
        "PUBSUB_EMULATOR_HOST": "127.0.0.1:1",
        "FIRESTORE_EMULATOR_HOST": "127.0.0.1:2",
        "STORAGE_EMULATOR_HOST": "http://127.0.0.1:3",
    }


@pytest.mark.usefixtures("no_proxy")
def test_loopback_is_added_to_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", ".example")
    assert clients()["NO_PROXY"] == ".example,127.0.0.1,localhost"
    assert clients()["no_proxy"] == ".example,127.0.0.1,localhost"


def tools(directory: Path) -> dict[str, str]:
    return tool_environment(
        project="p1", pubsub_host="127.0.0.1:1", proxy_url="http://127.0.0.1:4/",
        proxy_https_port=5, ca_file=directory / "ca.pem", directory=directory,
    )  # fmt: skip


def test_gsutil_verifies_the_proxy_by_its_ca(tmp_path: Path) -> None:
    environment = tools(tmp_path)
    boto = configparser.ConfigParser()
    boto.read(environment["BOTO_CONFIG"])
    assert boto["Credentials"]["gs_json_port"] == "5"
    assert boto["Boto"]["https_validate_certificates"] == "True"
    assert boto["Boto"]["ca_certificates_file"] == str(tmp_path / "ca.pem")
    # The SDK's gsutil prefers this setting to the file.
    assert environment["CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE"] == str(tmp_path / "ca.pem")


def test_gcloud_ignores_the_users_configuration(tmp_path: Path) -> None:
    environment = tools(tmp_path)
    assert environment["CLOUDSDK_CONFIG"] == str(tmp_path / "gcloud")
    assert environment["CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE"] == "http://127.0.0.1:4/"
    assert environment["CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB"] == "http://127.0.0.1:1/"


def test_export_lines_are_quoted_for_the_shell() -> None:
    lines = export_lines({"ONE": "it's $HOME", "TWO": "a b"})
    script = "\n".join([*lines, 'printf "%s|%s" "$ONE" "$TWO"'])
    shell = subprocess.run(
        ["sh", "-c", script], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert shell.stdout == "it's $HOME|a b"


def test_upload_command_is_gcloud_if_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert upload_command([Path("dir")], "gs://b/p/") is None
    (tmp_path / "gcloud").write_text("#!/bin/sh\n")
    (tmp_path / "gcloud").chmod(0o755)
    copy = ["gcloud", "storage", "cp", "--recursive"]
    assert upload_command([Path("dir")], "gs://b/p/") == [*copy, "dir", "gs://b/p/"]
    assert upload_command([Path("cam[1]")], "gs://b/p/") is None


def test_upload_line_needs_no_gcloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program, option, code = shlex.split(upload_line("uploads"))
    assert (program, option) == ("python", "-c")
    compile(code, "<printed>", "exec")
    (tmp_path / "gcloud").write_text("#!/bin/sh\n")
    (tmp_path / "gcloud").chmod(0o755)
    assert upload_line("uploads") == "gcloud storage cp IMAGE.jpg gs://uploads/"
