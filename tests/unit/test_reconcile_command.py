"""What `yolo-batch reconcile` and `dead-letters` refuse before they connect to a cloud."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from service.cli.dead_letters import dead_letters
from service.cli.exit_codes import ExitCode
from service.cli.reconcile import reconcile

SHA256 = "a" * 64


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["uploads/a"], "it must be gs://bucket or gs://bucket/prefix"),
        (["gs://"], "it must be gs://bucket or gs://bucket/prefix"),
        (["gs://uploads", "--dry-run"], "--dry-run needs --enqueue"),
        (["gs://uploads", "--enqueue", "missing"], "give --yes to publish, or --dry-run"),
        (["gs://uploads", "--enqueue", "stale", "--yes"], "give --model-sha256, or set MODEL_PATH"),
        (["gs://uploads", "--enqueue", "all", "--dry-run"], "--model-sha256, or set MODEL_PATH"),
        (["gs://uploads", "--model-sha256", "A" * 64], "64 hexadecimal digits in lower case"),
        (["gs://uploads", "--cpu-ms", "0"], "--cpu-ms"),
        (["gs://uploads", "--enqueue", "missing", "--enqueue", "failed"], "twice only if"),
        (
            ["gs://uploads", "--enqueue", "missing", "--limit", "5"],
            "--limit needs --enqueue",
        ),
        (["gs://uploads", "--enqueue", "parked", "--since", "2d"], "alone compares nothing"),
        (["gs://uploads", "--enqueue", "parked"], "give --yes to publish, or --dry-run"),
    ],
    ids=[
        "uri",
        "bucket",
        "dry",
        "unasked",
        "stale",
        "all",
        "sha256",
        "cpu",
        "two",
        "limit",
        "since",
        "parked",
    ],
)
def test_wrong_arguments_of_reconcile_are_named(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(reconcile, arguments)
    assert done.exit_code == 2
    assert sentence in " ".join(done.output.split())


def test_model_path_without_a_model_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MODEL_PATH", str(tmp_path / "nowhere"))
    done = CliRunner().invoke(reconcile, ["gs://uploads"])
    assert done.exit_code == ExitCode.CANNOT_SERVE
    assert "nowhere" in done.stderr


def test_unavailable_storage_says_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FIRESTORE_EMULATOR_HOST", "PUBSUB_EMULATOR_HOST"):
        monkeypatch.setenv(name, "127.0.0.1:9")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "demo")
    monkeypatch.setattr("service.gcp.listing.DEFAULT_RETRY.with_timeout", lambda _: None)
    done = CliRunner().invoke(reconcile, ["gs://uploads"])
    assert done.exit_code == ExitCode.FAILED
    assert "Cloud Storage is unavailable.\nCheck that the local stack still runs" in done.stderr


def test_resume_file_of_something_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("my notes")
    done = CliRunner().invoke(
        reconcile,
        ["gs://uploads", "--enqueue", "missing", "--yes", "--resume", str(tmp_path / "state")],
    )
    assert done.exit_code == ExitCode.FAILED
    assert "was not written by --resume" in done.stderr
    assert (tmp_path / "state").read_text() == "my notes"


@pytest.mark.parametrize("option", [["--as-is"], ["--id", "7"]], ids=["as-is", "id"])
def test_replay_options_need_replay(option: list[str]) -> None:
    done = CliRunner().invoke(dead_letters, option)
    assert done.exit_code == 2
    assert "need --replay" in done.output
