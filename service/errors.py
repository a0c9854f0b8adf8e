"""All errors of the package, and the HTTP status that each becomes.

    YoloBatchError
    ├── SettingsError                      a setting is wrong: the service does not start
    ├── CredentialsError                   no credentials or no project: nothing starts
    ├── ModelError                         a model cannot be loaded or exported
    ├── EnvelopeError                      the request cannot be read: 400
    ├── UnauthenticatedError               the push has no valid token: 401
    ├── ForbiddenError                     the push is from an account that is not allowed: 403
    ├── BadImageError                      the image can never be processed: recorded, then 204
    ├── DocumentKeptError                  a replacement failed or was parked: 204
    ├── NotAnImageError                    the service made the object itself: ignored, then 204
    ├── ObjectGoneError                    the generation no longer exists: 204
    ├── SourcesError                       sources are broken, or were changed meanwhile
    ├── FaintBytesError                    the faint detections of a document are damaged
    ├── ResultObjectError                  an object in RESULTS_BUCKET cannot be read or removed
    ├── StoredResultError                  a document of a result has another form
    ├── SmokeError                         the smoke test failed
    ├── DetectorError                      the model failed on an image: 500
    └── TransientError                     a later delivery can succeed: 503
        ├── NoFreeSlotError                429
        ├── TooLateError
        ├── ShuttingDownError
        ├── OtherModelError
        ├── SourcesUnknownError
        ├── DecoderUnavailableError
        ├── CertificatesUnavailableError
        ├── StorageUnavailableError
        │   └── StorageRefusedError        every request is refused: an operator must act
        ├── FirestoreUnavailableError
        │   └── FirestoreRefusedError      every request is refused: an operator must act
        └── PubSubUnavailableError
            └── PubSubRefusedError         every message is refused: an operator must act

A response with status 400, 401, 403, 429 or 503 contains the error's text. So these texts are fixed
sentences, and never repeat the input.
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
        """Build the message. Raise this error from the error of Google's library."""
        super().__init__(
            "Google credentials or the project are missing: run `gcloud auth "
            "application-default login` and set GOOGLE_CLOUD_PROJECT, or paste the "
            "variables that `yolo-batch-dev up` prints"
        )


class ModelError(YoloBatchError):
    """A model cannot be loaded or exported."""


class SourcesError(YoloBatchError):
    """The sources are broken, or somebody else changed them meanwhile."""


class StoredResultError(YoloBatchError):
    """A document does not have the form that this version of the service writes."""


class EnvelopeError(YoloBatchError):
    """The request is not a readable event, push message or job."""


class UnauthenticatedError(YoloBatchError):
    """The push has no token, or its token is invalid."""


class ForbiddenError(YoloBatchError):
    """The push's token is valid, but its service account is not allowed."""


class BadImageError(YoloBatchError):
    """The image can never be processed: another attempt would fail in the same way."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        """Take the code and the message of the image's document."""
        super().__init__(message)
        self.code = code
        self.message = message

    @classmethod
    def corrupt(cls, message: str) -> Self:
        """Return the error for a damaged file. The message names what is damaged."""
        return cls(ErrorCode.CORRUPT_IMAGE, message)

    @classmethod
    def too_many_bytes(cls, what: str, limit: int) -> "BadImageError":
        """Return the error for an object or a file over MAX_IMAGE_BYTES. `what` names it."""
        return cls(
            ErrorCode.IMAGE_TOO_LARGE, f"The {what} has more than MAX_IMAGE_BYTES={limit} bytes."
        )

    @classmethod
    def unsupported(cls, what: str) -> "BadImageError":
        """Return the error for an intact file of an unsupported kind. `what` begins the message."""
        return cls(ErrorCode.UNSUPPORTED_MEDIA, f"{what} is not supported.")


class NotAnImageError(YoloBatchError):
    """A service like this one made the object: it has the marker of result objects."""


class ObjectGoneError(YoloBatchError):
    """The generation was overwritten or deleted before we read it."""


class DocumentKeptError(YoloBatchError):
    """A replacement failed for a reason outside the image's bytes: the document is kept."""


class FaintBytesError(YoloBatchError):
    """The bytes of a document's field `faint` cannot be read."""


class ResultObjectError(YoloBatchError):
    """An object in RESULTS_BUCKET is missing, is damaged, or belongs to another image."""


class SmokeError(YoloBatchError):
    """The sample image got no result. The message names where to look."""


class DetectorError(YoloBatchError):
    """The model raised an exception, or returned the wrong number of results."""


class TransientError(YoloBatchError):
    """The same message can succeed when it is redelivered."""

    retry_after_seconds = 10
    is_logged = False  # True: `service.gcp.outages` has logged it, once for all messages


class NoFreeSlotError(TransientError):
    """No slot is free. There are MAX_IN_FLIGHT slots. Jobs and deletions may use half of them."""

    retry_after_seconds = 2


class TooLateError(TransientError):
    """The delivery's deadline is too near. The next delivery may start at once."""

    retry_after_seconds = 1

    def __init__(self) -> None:
        """Build the message, which is the same for every wait."""
        super().__init__("The image waited until its delivery's deadline was near.")


class ShuttingDownError(TransientError):
    """The process is stopping. Another instance takes the message."""

    retry_after_seconds = 1


class OtherModelError(TransientError):
    """The message asks for another model, which another revision may run."""


class SourcesUnknownError(TransientError):
    """The sources are not known, so an image could be processed against its privacy settings."""

    retry_after_seconds = 60

    def __init__(self) -> None:
        """Build the message, which is the same for every image."""
        super().__init__("The sources could not be read, so the image's settings are not known.")


class DecoderUnavailableError(TransientError):
    """No decoder process could be started or kept running. The file is not at fault."""


class CertificatesUnavailableError(TransientError):
    """Google's certificates, which verify tokens, are unavailable."""


class StorageUnavailableError(TransientError):
    """Cloud Storage did not return the image."""


class FirestoreUnavailableError(TransientError):
    """Firestore did not read or write the document."""


class PubSubUnavailableError(TransientError):
    """Pub/Sub did not confirm a message. The image's document is committed."""


class StorageRefusedError(StorageUnavailableError):
    """Cloud Storage refuses the bucket or the account. One log line says what to repair."""

    is_logged = True


class FirestoreRefusedError(FirestoreUnavailableError):
    """Firestore refuses the database or the account. One log line says what to repair."""

    is_logged = True


class PubSubRefusedError(PubSubUnavailableError):
    """Pub/Sub refuses the topic or the account. One log line says what to repair."""

    is_logged = True
