"""The gallery's own settings in the cloud, read once from environment variables."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from service.errors import SettingsError

VERDICTS_DATABASE = "yolo-batch-verdicts"


@dataclass(frozen=True)
class GallerySettings:
    """What the gallery may read and do.

    `audience` is the audience of IAP's assertions. `originals` says whether the uploads may be
    read. Jobs of failed images are published to `jobs_topic`. None: nobody may try again.
    """

    audience: str | None = None
    originals: bool = True
    verdicts_database: str = VERDICTS_DATABASE
    jobs_topic: str | None = None

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "GallerySettings":
        """Read the settings. An unset or empty variable means the default.

        Raises:
            SettingsError: a value is wrong. The message names the variable.
        """
        environ = os.environ if environ is None else environ
        given = {name: environ.get(f"GALLERY_{name}", "").strip() for name in _NAMES}
        if given["ORIGINALS"].lower() not in ("", "true", "false"):
            raise SettingsError(
                f"GALLERY_ORIGINALS={given['ORIGINALS']!r} is wrong: it must be true or false"
            )
        return cls(
            given["AUDIENCE"] or None,
            given["ORIGINALS"].lower() != "false",
            given["VERDICTS_DATABASE"] or VERDICTS_DATABASE,
            given["JOBS_TOPIC"] or None,
        )


_NAMES = ("AUDIENCE", "ORIGINALS", "VERDICTS_DATABASE", "JOBS_TOPIC")
