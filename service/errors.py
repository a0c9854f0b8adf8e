"""Everything that can go wrong, and whether a second delivery can help.

    YoloBatchError
    ├── SettingsError              a wrong environment variable: stops the start
    ├── CredentialsError           no credentials or no project: stops the start
    ├── ModelError                 a model that cannot be loaded or exported
    ├── EnvelopeError              a request that cannot be read: 400
    ├── UnauthenticatedError       a push without a valid token: 401
    ├── ForbiddenError             a push in the name of an account that may not: 403
    ├── BadImageError              never detectable: recorded, then acknowledged
    ├── DocumentKeptError          a replacement that failed beside a done document: acknowledged
    ├── ObjectGoneError            the generation no longer exists: acknowledged
    ├── SmokeError                 the smoke test's image did not become a result
    ├── DetectorError              the model failed on an image: 500
    └── TransientError             a later delivery can succeed: 503
        ├── NoFreeSlotError         429
        ├── TooLateError
        ├── ShuttingDownError
        ├── OtherModelError
        ├── DecoderUnavailableError
        ├── CertificatesUnavailableError
        ├── StorageUnavailableError
        │   └── StorageRefusedError    it refuses every request: an operator must act
        └── FirestoreUnavailableError
            └── FirestoreRefusedError      it refuses every request: an operator must act

The text of an error that is answered with 400, 401, 403, 429 or 503 goes back to the caller: it
is a sentence of ours and never repeats the input.
"""

from typing import Self

from service.domain import ErrorCode


class YoloBatchError(Exception):
    """Base of every error that this package raises on purpose."""


class SettingsError(YoloBatchError):
    """An environment variable is missing or has a wrong value."""


class CredentialsError(YoloBatchError):
    """Google's clients found no credentials, or no project."""

    def __init__(self) -> None:
        """Say what to do; what Google's library says is the cause."""
        super().__init__(
            "Google credentials or the project are missing: run `gcloud auth "
            "application-default login` and set GOOGLE_CLOUD_PROJECT, or paste what "
            "`yolo-batch-dev up` prints"
        )


class ModelError(YoloBatchError):
    """A model cannot be loaded or exported."""


class EnvelopeError(YoloBatchError):
    """The request is not an event, a push message or a job that we can read."""


class UnauthenticatedError(YoloBatchError):
    """The push carries no token, or not a valid one."""


class ForbiddenError(YoloBatchError):
    """The push's token is valid, but its service account may not push."""


class BadImageError(YoloBatchError):
    """The bytes can never become an image that we detect on."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        """Keep the code apart from the message: both go into the image's document."""
        super().__init__(message)
        self.code = code
        self.message = message

    @classmethod
    def corrupt(cls, message: str) -> Self:
        """Return the error for a damaged file; the message says what is damaged."""
        return cls(ErrorCode.CORRUPT_IMAGE, message)

    @classmethod
    def too_many_bytes(cls, what: str, limit: int) -> "BadImageError":
        """Return the error for an object or a file over MAX_IMAGE_BYTES."""
        return cls(
            ErrorCode.IMAGE_TOO_LARGE, f"The {what} has more than MAX_IMAGE_BYTES={limit} bytes."
        )

    @classmethod
    def unsupported(cls, what: str) -> "BadImageError":
        """Return the error for an intact file of an unsupported kind."""
        return cls(ErrorCode.UNSUPPORTED_MEDIA, f"{what} is not supported.")


class ObjectGoneError(YoloBatchError):
    """The generation was overwritten or deleted before we read it."""


class DocumentKeptError(YoloBatchError):
    """A replacement failed for a reason outside the image's bytes: its done document stays."""


class SmokeError(YoloBatchError):
    """The sample did not become a result; the message says where to look."""


class DetectorError(YoloBatchError):
    """The model raised an exception, or returned the wrong number of results."""


class TransientError(YoloBatchError):
    """Not now: the same message can succeed when it is delivered again."""

    retry_after_seconds = 10
    is_logged = False  # whether one log line already covers all affected messages


class NoFreeSlotError(TransientError):
    """As many images as allowed are in flight already."""

    retry_after_seconds = 2


class TooLateError(TransientError):
    """The message's deadline is near: its next delivery may begin at once."""

    retry_after_seconds = 1

    def __init__(self) -> None:
        """Take no details: the sentence is the same for every wait."""
        super().__init__("The image waited until its message's deadline was near.")


class ShuttingDownError(TransientError):
    """The process was told to stop; another one takes the message."""

    retry_after_seconds = 1


class OtherModelError(TransientError):
    """The message asks for another model than this service runs; another revision may run it."""


class DecoderUnavailableError(TransientError):
    """No memory to decode an image now; this says nothing against the image."""


class CertificatesUnavailableError(TransientError):
    """Google's certificates, with which tokens are checked, cannot be had."""


class StorageUnavailableError(TransientError):
    """Cloud Storage did not return the image."""


class FirestoreUnavailableError(TransientError):
    """Firestore did not take or give the document."""


class StorageRefusedError(StorageUnavailableError):
    """Cloud Storage refuses the bucket or the account; see `service.gcp.outages`."""

    is_logged = True


class FirestoreRefusedError(FirestoreUnavailableError):
    """Firestore refuses the database or the account; see `service.gcp.outages`."""

    is_logged = True
