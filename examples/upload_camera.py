"""Upload frames of a camera, a video file or a folder to Cloud Storage at a fixed interval.

    python upload_camera.py rtsp://10.0.0.7/stream gs://uploads --camera gate-1 --interval 5

An object is named CAMERA/YYYY/MM/DD/HHMMSS.ffffff.jpg (UTC), so frames sort by time. A frame that
cannot be uploaded within RETRY_SECONDS is dropped, because the next frame is more recent.

Needs `pip install google-cloud-storage opencv-python-headless` and `roles/storage.objectCreator`.
"""

import argparse
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import cv2
from google.api_core.exceptions import ClientError, GoogleAPIError
from google.auth.exceptions import TransportError
from google.cloud.storage import Bucket, Client
from google.cloud.storage.retry import DEFAULT_RETRY

RETRY_SECONDS = 10.0


def frames(source: str) -> Iterator[cv2.typing.MatLike]:
    """Yield BGR frames. A folder or a file ends. A live camera is opened again when it fails."""
    if Path(source).is_dir():
        images = map(cv2.imread, sorted(map(str, Path(source).iterdir())))
        yield from (image for image in images if image is not None)
        return
    while True:
        capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
        while (frame := capture.read())[0]:
            yield frame[1]
        if Path(source).is_file():
            return
        print(f"No frame from {source}. Trying again in 5 seconds.", flush=True)
        time.sleep(5)


def upload(bucket: Bucket, name: str, jpeg: bytes) -> None:
    """Upload a frame once. Network errors are retried, and then the frame is dropped."""
    once = {"if_generation_match": 0, "retry": DEFAULT_RETRY.with_timeout(RETRY_SECONDS)}
    try:
        bucket.blob(name).upload_from_string(jpeg, "image/jpeg", **once)
    except (GoogleAPIError, TransportError) as error:
        if isinstance(error, ClientError) and error.code not in (408, 412, 429):
            raise SystemExit(f"Cloud Storage rejected {name}: {error.message}") from error
        if getattr(error, "code", None) != 412:  # 412: an earlier attempt has stored the frame
            print(f"Dropped {name}: {error}", flush=True)
            return
    print(f"Uploaded gs://{bucket.name}/{name}", flush=True)


def main() -> None:
    """Upload until the source ends, Ctrl-C is pressed, or the system stops the program."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a background job starts with SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    parser = argparse.ArgumentParser(description="Upload frames at a fixed interval.")
    parser.add_argument("source", help="device number, stream URL, video file or folder")
    parser.add_argument("bucket", help="gs://BUCKET")
    parser.add_argument("--camera", required=True, help="first part of the objects' names")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between frames")
    options = parser.parse_args()
    if not options.bucket.startswith("gs://"):
        parser.error(f"{options.bucket} must be gs://BUCKET")
    bucket = Client().bucket(options.bucket.removeprefix("gs://").rstrip("/"))
    is_live = not (Path(options.source).is_dir() or Path(options.source).is_file())
    due = time.monotonic()
    with suppress(KeyboardInterrupt):
        for frame in frames(options.source):
            if is_live and time.monotonic() < due:
                continue  # Keep reading: a camera that is not read buffers old frames.
            time.sleep(max(0.0, due - time.monotonic()))
            due = time.monotonic() + options.interval
            name = f"{options.camera}/{datetime.now(UTC):%Y/%m/%d/%H%M%S.%f}.jpg"
            upload(bucket, name, cv2.imencode(".jpg", frame)[1].tobytes())


if __name__ == "__main__":
    main()
