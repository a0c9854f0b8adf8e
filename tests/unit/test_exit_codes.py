"""What commands answer to wrong input: a sentence, an exit code, and never a traceback."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from devtools.cli.main import main as dev_main
from service.cli.exit_codes import ExitCode
from service.cli.main import main
from service.errors import FirestoreUnavailableError, ModelError, SettingsError, SmokeError
from service.settings import BUNDLED_MODEL
from tests.fakes import bmp_image

YOLO_BATCH = Path(sys.executable).with_name("yolo-batch")
NO_CLOUD = ("_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT", "GOOGLE_APPLICATION_CREDENTIALS")
SECONDS = 120


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory: an image, a text, and models that are none."""
    (tmp_path / "image.bmp").write_bytes(bmp_image())
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty").mkdir()
    shutil.copytree(BUNDLED_MODEL, tmp_path / "damaged")
    (tmp_path / "damaged" / "shapes.xml").write_text("<net")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


@pytest.fixture(autouse=True)
def without_cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.endswith(NO_CLOUD):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["detect"], ExitCode.USAGE, "Missing argument 'PATHS...'"),
        (["detect", "nowhere.jpg"], ExitCode.FAILED, "There is no file or folder nowhere.jpg"),
        (["detect", "empty"], ExitCode.FAILED, "There are no files in empty: name images"),
        (["detect", "/proc/self/mem"], ExitCode.FAILED, "/proc/self/mem cannot be read"),
        (["detect", "image.bmp", "--model", "no"], ExitCode.CANNOT_SERVE, "no model at no"),
        (["detect", "image.bmp", "--save", "text.jpg"], ExitCode.USAGE, "'text.jpg' is a file"),
        (["detect", "image.bmp", "--save", "text.jpg/a"], ExitCode.FAILED, "text.jpg/a: Not a"),
        (["detect", "image.bmp", "--batch-size", "x"], ExitCode.USAGE, "'x' is not a valid int"),
        (["check-model", "nowhere"], ExitCode.CANNOT_SERVE, "There is no model at nowhere"),
        (["check-model", "empty"], ExitCode.CANNOT_SERVE, "empty is not an exported model"),
        (["check-model", "damaged"], ExitCode.CANNOT_SERVE, "damaged is damaged"),
        (["export", "damaged", "--precision", "int8"], ExitCode.USAGE, "needs --calibration"),
        (["export", "damaged", "--precision", "fp32"], ExitCode.CANNOT_SERVE, "has fp16 weights"),
        (["export", "damaged", "--output", "empty"], ExitCode.CANNOT_SERVE, "empty exists"),
        (["results", "gs://a"], ExitCode.FAILED, "credentials or the project are missing"),
        (["results", "a/b"], ExitCode.USAGE, "it must be gs://bucket or gs://bucket/prefix"),
        (["reconcile", "gs://a"], ExitCode.FAILED, "credentials or the project are missing"),
        (["reconcile", "gs:///a"], ExitCode.USAGE, "it must be gs://bucket"),
        (["submit", "gs://a"], ExitCode.USAGE, "'gs://a' is wrong"),
        (["submit", "gs://uploads/b"], ExitCode.FAILED, "GOOGLE_CLOUD_PROJECT"),
        (["submit", "gs://a/b", "--wait", "--no-check"], ExitCode.USAGE, "omit --no-check"),
        (["submit", "gs://a/b", "--timeout", "5"], ExitCode.USAGE, "--timeout needs --wait"),
        (["watch", "a/b"], ExitCode.USAGE, "it must be gs://bucket or gs://bucket/prefix"),
        (["watch", "gs://a"], ExitCode.FAILED, "credentials or the project are missing"),
        (["submit", "-"], ExitCode.FAILED, "There are no URIs to submit"),
        (["smoke", "a"], ExitCode.USAGE, "it must be gs://bucket"),
        (["smoke", "gs://a"], ExitCode.FAILED, "credentials or the project are missing"),
        (["dead-letters"], ExitCode.FAILED, "credentials or the project are missing"),
        (["dead-letters", "--id", "7"], ExitCode.USAGE, "need --replay"),
        (["demo"], ExitCode.USAGE, "run `yolo-batch-dev demo`"),
        (["nothing"], ExitCode.USAGE, "No such command 'nothing'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_input_is_one_sentence_and_a_code(
    arguments: list[str], code: ExitCode, sentence: str, folder: Path
) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code == code, done.output
    assert sentence in done.stderr
    assert done.stderr.count("Error: ") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["up"], ["demo"]], ids=" ".join)
def test_missing_model_is_named_before_the_start(arguments: list[str]) -> None:
    done = CliRunner().invoke(dev_main, [*arguments, "--model", "nowhere"])
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "Path 'nowhere' does not exist." in done.stderr


def test_demo_takes_a_task_or_a_model_but_not_both(folder: Path) -> None:
    arguments = ["demo", "--task", "segment", "--model", str(folder)]
    done = CliRunner().invoke(dev_main, arguments)
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "give either --task or --model" in done.stderr


@pytest.mark.parametrize("choice", ["--task=segment", "--images=.", "--model=yolo26n.pt"])
def test_demo_follows_only_its_own_image(choice: str) -> None:
    done = CliRunner().invoke(dev_main, ["demo", "--follow", choice])
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "--follow uses a drawn image and the bundled model" in done.stderr


def test_unwritable_output_of_the_demo_is_named_before_the_start(folder: Path) -> None:
    arguments = ["demo", "--images", "image.bmp", "--output", "text.jpg/output"]
    done = CliRunner().invoke(dev_main, arguments)
    assert done.exit_code == ExitCode.FAILED
    assert "text.jpg/output: Not a directory" in done.stderr
    assert "Starting" not in done.stdout


def test_invalid_bucket_of_up_is_named_before_the_start() -> None:
    done = CliRunner().invoke(dev_main, ["up", "--bucket", "My Bucket"])
    assert (done.exit_code, done.stdout) == (ExitCode.USAGE, "")
    assert "'My Bucket': The bucket's name is not valid in Cloud Storage." in done.stderr


def test_wrong_setting_stops_every_command_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_IMAGE_PIXELS", "x")
    for arguments in (["serve"], ["check-model"], ["results", "gs://a"], ["detect", __file__]):
        done = run(*arguments)
        assert done.exit_code == ExitCode.CANNOT_SERVE
        assert "MAX_IMAGE_PIXELS='x' is wrong" in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (SettingsError("PORT is wrong"), 3, "Error: PORT is wrong\n"),
        (ModelError("no model"), 3, "Error: no model\n"),
        (SmokeError("no document"), 1, "Error: no document\n"),
        (FirestoreUnavailableError("Firestore is away."), 1, "Firestore is away.\nTry again"),
        (ModuleNotFoundError("No module named 'nncf'"), 1, "pip install 'yolo-batch[export]'"),
        (
            ModuleNotFoundError("No module named 'pyarrow'", name="pyarrow"),
            1,
            "pip install 'yolo-batch[parquet]'",
        ),
        (PermissionError(13, "Permission denied", "a/b"), 1, "Error: a/b: Permission denied\n"),
        (OSError(28, "No space left on device"), 1, "cannot be written: No space left"),
        (click.UsageError("a\x1b[2J"), 2, "Error: a?[2J\n"),
        (click.Abort(), 1, "Aborted\n"),
        (KeyboardInterrupt(), 130, "Interrupted\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_each_kind_of_error_has_its_code(
    error: BaseException, code: int, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("service.cli.main.Settings.from_env", fail)
    done = run("serve")
    assert done.exit_code == code
    assert sentence in done.stderr
    assert "Traceback" not in done.output


def test_unavailable_emulator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise FirestoreUnavailableError("Firestore is unavailable.")

    monkeypatch.setattr("service.cli.main.Settings.from_env", fail)
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", "127.0.0.1:9")
    done = run("serve")
    assert "local stack still runs: FIRESTORE_EMULATOR_HOST=127.0.0.1:9" in done.stderr


def test_bad_image_is_a_result_and_no_failure(folder: Path) -> None:
    done = run("detect", "text.jpg")
    assert done.exit_code == ExitCode.DONE
    assert "unsupported_media" in done.stdout


def test_no_command_shows_the_help_and_is_wrong_usage() -> None:
    for line in (main, dev_main):
        done = CliRunner().invoke(line, [])
        assert done.exit_code == ExitCode.USAGE
        assert "Examples:" in done.output


@pytest.mark.parametrize("arguments", ["--help", "detect image.bmp", "detect --json image.bmp"])
def test_full_disk_is_one_sentence(arguments: str, folder: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [YOLO_BATCH, *arguments.split()],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=SECONDS,
        )  # fmt: skip
    assert done.returncode == ExitCode.FAILED
    assert done.stderr == "Error: The output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_cause_no_traceback(closed: str, folder: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" detect image.bmp {closed}', YOLO_BATCH],
        capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == ExitCode.DONE, done.stderr
    assert done.stderr == ""


def test_interrupt_keeps_finished_results_and_exits_with_130(folder: Path) -> None:
    (folder / "images").mkdir()
    for number in range(100):
        (folder / "images" / f"{number}.bmp").write_bytes(bmp_image(width=500, height=500))
    with subprocess.Popen(
        [YOLO_BATCH, "detect", "--json", "images"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith('{"')
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: decoders get it too
        started = time.monotonic()
        process.stdout.read()
        assert process.stderr.read().strip() == "Interrupted"
        assert process.wait(SECONDS) == ExitCode.INTERRUPTED
    assert time.monotonic() - started < SECONDS


def test_codes_are_documented() -> None:
    assert {code.name: int(code) for code in ExitCode} == {
        "DONE": 0, "FAILED": 1, "USAGE": 2, "CANNOT_SERVE": 3, "NOT_ALL_DONE": 4,
        "NOT_FINISHED": 5, "INTERRUPTED": 130,
    }  # fmt: skip
    assert all(code.description.endswith(".") for code in ExitCode)
