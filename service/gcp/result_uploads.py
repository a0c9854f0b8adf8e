"""Uploads the objects that belong to an image's result, and removes those that nobody needs.

A result can have an object with its detections (`service.gcp.large_results`) and derived images.
All are created before the commit, in the request's own thread. So no document refers to an object
that was never created. An object that no document refers to is removed after the commit:

- an object that this delivery created, if another one committed its document first
- an object of a document that was replaced
- all objects of the image, if it was deleted meanwhile

An object that this delivery did not create, because it existed, may be the object of another
delivery of the image. So it is not removed then. It is created again if it is missing after the
commit, because the other delivery may have removed it.

If it is unknown whether a commit succeeded, the objects stay. The next delivery uses them again.
"""

import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from service.deadline import NO_DEADLINE, Deadline
from service.domain import CommittedResult, DerivedImage, ImageResult, PreparedResult, ResultObject
from service.errors import YoloBatchError
from service.gcp.large_results import LargeResults
from service.gcp.result_objects import ResultObjects

logger = logging.getLogger(__name__)

_UPLOADS_AT_ONCE = 4  # of one image
_ENDINGS = {"image/jpeg": "jpg", "image/png": "png", "text/plain": "txt"}


class ResultUploads:
    """Uploads and removes the objects of results. Safe to use from many threads."""

    def __init__(self, objects: ResultObjects) -> None:
        """Take the objects. If they have no bucket, no result may have derived images."""
        self._objects = objects
        self._large_results = LargeResults(objects)

    def prepare(self, result: ImageResult, deadline: Deadline = NO_DEADLINE) -> PreparedResult:
        """Create a result's objects. Return the result as its document can have it.

        Raises:
            StorageUnavailableError: Cloud Storage did not respond, or refuses the bucket.
            TooLateError: the deadline has passed.
        """
        contents = [
            _content(result.ref.document_id, index, image)
            for index, image in enumerate(result.derived)
        ]
        uris = [self._objects.uri(content.name) for content in contents]
        derived = (replace(image, uri=uri) for image, uri in zip(result.derived, uris, strict=True))
        result, large = self._large_results.fit(replace(result, derived=tuple(derived)))
        contents += [large] if large else []
        are_new = self._create(contents, deadline)
        found = [content for content, is_new in zip(contents, are_new, strict=True) if not is_new]
        return PreparedResult(result, {self._objects.uri(each.name): each for each in found})

    def _create(self, contents: Sequence[ResultObject], deadline: Deadline) -> list[bool]:
        """Create objects, several at once. Return for each whether it is new."""
        create = partial(self._objects.create, deadline=deadline)
        if len(contents) < 2:
            return list(map(create, contents))
        with ThreadPoolExecutor(min(len(contents), _UPLOADS_AT_ONCE)) as threads:
            return list(threads.map(create, contents))

    def settle(
        self,
        prepared: PreparedResult,
        committed: CommittedResult,
        deadline: Deadline = NO_DEADLINE,
    ) -> None:
        """Remove the objects that a commit made useless. Create missing objects of the document.

        A failure is only logged, because the document is committed.

        Args:
            prepared: the result that was to be committed.
            committed: how it is recorded.
            deadline: ends the requests.
        """
        ref, found = prepared.result.ref, prepared.found
        needed = frozenset() if committed.is_superseded else committed.result.object_uris
        unused = committed.unused_uris - found.keys()
        try:
            for uri in sorted(needed & found.keys()):
                self._objects.create(found[uri], deadline)
            for uri in sorted(unused):
                self._objects.remove(uri, ref.document_id, deadline)
        except YoloBatchError as exc:
            logger.warning(
                "An object in RESULTS_BUCKET could not be created or removed",
                extra={
                    "uri": ref.uri,
                    "unused": sorted(unused),
                    "needed": sorted(needed & found.keys()),
                    "reason": str(exc),
                },
            )

    def remove_all(self, document_id: str, deadline: Deadline = NO_DEADLINE) -> None:
        """Delete all objects of a document. See `ResultObjects.remove_all`."""
        self._objects.remove_all(document_id, deadline)


def _content(document_id: str, index: int, image: DerivedImage) -> ResultObject:
    """Return the object of a derived image.

    Its name has no label and nothing of the image's name, because both are untrusted text. `index`
    gives equal crops different names.
    """
    crop = () if image.class_id is None else (image.class_id, index)
    sha256 = hashlib.sha256(image.data).hexdigest()
    name = "-".join(map(str, (document_id, image.kind, *crop, sha256)))
    return ResultObject(f"{name}.{_ENDINGS[image.content_type]}", image.data, image.content_type)
