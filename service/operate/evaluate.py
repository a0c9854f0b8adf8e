"""Measures the mAP of results that exist: those in Firestore, or those of a folder of images."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.document import STATUS_DONE, STATUS_FAILED
from service.domain import Detection, Task
from service.errors import ModelError, StoredResultError, YoloBatchError
from service.inference.average_precision import (
    RESAMPLES,
    AveragePrecision,
    Measured,
    TrueBox,
)
from service.operate.image_names import ResultName, keys, match_images, result_keys, stored_name
from service.stored_result import stored_result
from service.truth import Labels, Truth, list_some, match_classes, normalize, read_truth

MIN_CONFIDENCE = 0.001  # the usual threshold of detections for mAP
_FILE = {"bucket": "", "generation": 1}  # what the document of a local file lacks
# Detections from this confidence on show that the model finds something in the images.
_CONFIDENT = 0.25
_MIN_PLAUSIBLE_MAP50 = 0.05  # below it, the labels are more likely wrong than the model


class EvaluationError(YoloBatchError):
    """Nothing can be measured. The message says why."""


@dataclass(frozen=True)
class Result:
    """What is known of one image.

    Attributes:
        name: the image's name.
        detections: all recorded detections, faint ones included. None: there is no result.
        size: (width, height) of the upright image in pixels, or None.
        failure: why there is no result, as a short text. None: there is one.
        is_failed: whether the image is failed. Then it counts as an image without detections.
        faint_cut: confidence below which some detections are not recorded, or None.
        model: name of the model, and the first digits of its sha256.
        generation: generation of the object.
    """

    name: ResultName
    detections: tuple[Detection, ...] | None = None
    size: tuple[int, int] | None = None
    failure: str | None = None
    is_failed: bool = False
    faint_cut: float | None = None
    model: str | None = None
    generation: int = 0
    is_classified: bool = False
    has_shapes: bool = False


@dataclass(frozen=True)
class Evaluation:
    """The mAP of results on labelled images.

    Attributes:
        figures: mAP and the AP of each label, with intervals.
        images: number of images on which it was measured.
        objects: number of labelled objects in them, crowds included.
        failed: names of measured images that failed: they count as images without detections.
        unmatched_labels: names of labelled images that have no result.
        ambiguous: names of labelled images that fit several results.
        unmatched_results: names of some results that have no labelled image.
        unmatched_count: number of results that have no labelled image.
        notes: sentences about what was left out or assumed.
    """

    figures: Measured
    images: int
    objects: int
    failed: tuple[str, ...] = ()
    unmatched_labels: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()
    unmatched_results: tuple[str, ...] = ()
    unmatched_count: int = 0
    notes: tuple[str, ...] = ()


def read_labels(file: Path) -> Truth:
    """Read a label file in COCO's format. Its images need not exist.

    Raises:
        EvaluationError: there is no such file, or it is malformed or contradicts itself.
    """
    if not file.is_file():
        raise EvaluationError(f"There is no label file {file}")
    try:
        return read_truth(Labels(file))
    except ModelError as exc:
        raise EvaluationError(str(exc)) from exc


def stored_results(documents: Iterable[Mapping[str, Any]], prefix: str) -> Iterator[Result]:
    """Yield what the documents of a prefix say about their images."""
    for document in documents:
        bucket, name = str(document.get("bucket")), str(document.get("name"))
        yield _result(document, stored_name(bucket, name, _generation(document), prefix))


def file_results(documents: Iterable[Mapping[str, Any]], folder: Path) -> Iterator[Result]:
    """Yield what the documents of `service.operate.detect` say about the files in a folder."""
    for document in documents:
        name = Path(document["name"]).relative_to(folder).as_posix()
        yield _result({**_FILE, **document}, ResultName(name, name))


def _generation(document: Mapping[str, Any]) -> int:
    generation = document.get("generation")
    return generation if isinstance(generation, int) else 0


def _result(document: Mapping[str, Any], name: ResultName) -> Result:
    generation = _generation(document)
    status, error = document.get("status"), document.get("error")
    if status != STATUS_DONE:
        code = error.get("code") if isinstance(error, dict) else None
        return Result(
            name,
            failure=str(code or status),
            is_failed=status == STATUS_FAILED,
            generation=generation,
        )
    try:
        stored = stored_result(document)
    except (StoredResultError, ArithmeticError, AttributeError, ValueError):
        return Result(name, failure="the document was edited", generation=generation)
    info, model = stored.image_info, stored.model
    cut, floor = document.get("faint_cut"), document.get("faint")
    return Result(
        name,
        (*stored.detections, *(stored.faint or ())),
        (info.width, info.height) if info else None,
        faint_cut=cut if isinstance(cut, float) and floor is not None else None,
        model=f"{model.name} ({model.sha256[:8]})" if model else None,
        generation=generation,
        is_classified=bool(model and model.task is Task.CLASSIFY),
        has_shapes=bool(model and model.task is not Task.DETECT),
    )


@dataclass
class _Chosen:
    """The results that may have a labelled image, and what is known of the others."""

    by_uri: dict[str, Result] = field(default_factory=dict)
    others: int = 0
    some_others: list[str] = field(default_factory=list)
    older: int = 0

    def leave_out(self, result: Result) -> None:
        self.others += 1
        if len(self.some_others) < 5:
            self.some_others.append(result.name.name)

    def add(self, result: Result) -> None:
        key = result.name.uri or result.name.name
        known = self.by_uri.get(key)
        self.older += known is not None
        if known is None or result.generation > known.generation:
            self.by_uri[key] = result


def evaluate(
    truth: Truth,
    results: Iterable[Result],
    *,
    file: Path,
    labels: Iterable[str] | None = None,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Measure the mAP of results on labelled images.

    Args:
        truth: the labelled images.
        results: the results, in any order. They may include images that are not labelled.
        file: the label file, for messages.
        labels: the labels of all classes of the model. None: not known, so every category with
            objects is measured.
        resamples: how often the images are drawn again for the intervals.

    Raises:
        EvaluationError: no image or no label can be measured.
    """
    chosen = _choose(truth, results)
    found = list(chosen.by_uri.values())
    matches = match_images(truth.images, [result.name for result in found])
    result_of = {image: found[index] for image, index in matches.result_of.items()}
    matched = set(matches.result_of.values())
    for index, result in enumerate(found):
        if index not in matched:
            chosen.leave_out(result)
    if any(result.is_classified for result in result_of.values()):
        raise EvaluationError(
            "The results are those of a classification model, which has no boxes: mAP cannot be "
            "measured"
        )
    measured, notes = _measurable(truth, result_of)
    label_of, label_notes = _label_of(truth, measured.values(), labels, file)
    boxes = _boxes(truth, measured, label_of)
    evaluation = AveragePrecision()
    for image, result in measured.items():
        evaluation.add(
            boxes[image],
            (item for item in result.detections or () if item.label in label_of.values()),
        )
    objects = sum(map(len, boxes.values()))
    if all(box.is_crowd for items in boxes.values() for box in items):
        raise EvaluationError(_nothing(truth, matches.ambiguous, result_of, file, notes))
    precision = evaluation.result(resamples=resamples)
    names = [image.name for image in truth.images]
    has_result = {*result_of, *matches.ambiguous}
    return Evaluation(
        precision,
        images=len(measured),
        objects=objects,
        failed=tuple(names[i] for i, result in measured.items() if result.is_failed),
        unmatched_labels=tuple(n for i, n in enumerate(names) if i not in has_result),
        ambiguous=tuple(names[i] for i in matches.ambiguous),
        unmatched_results=tuple(chosen.some_others),
        unmatched_count=chosen.others,
        notes=(
            *_doubts(precision, measured.values()),
            *notes,
            *_about_results(measured.values(), chosen.older),
            *label_notes,
            *truth.notes,
        ),
    )


def _choose(truth: Truth, results: Iterable[Result]) -> _Chosen:
    wanted = {key for image in truth.images for key in keys(image)}
    chosen = _Chosen()
    for result in results:
        if wanted & result_keys(result.name):
            chosen.add(result)
        else:
            chosen.leave_out(result)
    return chosen


def _measurable(
    truth: Truth, result_of: Mapping[int, Result]
) -> tuple[dict[int, Result], list[str]]:
    """Return the results on which mAP can be measured, and notes about the other images."""
    measured: dict[int, Result] = {}
    resized, unfinished = [], []
    for index, result in sorted(result_of.items()):
        image = truth.images[index]
        if result.failure and not result.is_failed:
            unfinished.append(f"{image.name} ({result.failure})")
        elif result.size and image.size and result.size != image.size:
            resized.append(
                f"{image.name} ({result.size[0]}x{result.size[1]}, "
                f"labelled {image.size[0]}x{image.size[1]})"
            )
        else:
            measured[index] = result
    notes = []
    if unfinished:
        notes.append(
            f"Images without a final result, left out: {len(unfinished)}: {list_some(unfinished)}"
        )
    if resized:
        notes.append(
            f"Images of another size than in the labels, left out: {len(resized)}: "
            f"{list_some(resized)}"
        )
    return measured, notes


def _label_of(
    truth: Truth, results: Iterable[Result], labels: Iterable[str] | None, file: Path
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Return the model's label of each category, and notes about them.

    If the model's labels are not known, a category that no result has is measured too: the model
    may have missed every object of it.
    """
    if labels is not None:
        try:
            classes = match_classes(truth, labels, file=file)
        except ModelError as exc:
            raise EvaluationError(str(exc)) from exc
        return classes.label_of, classes.notes
    found = {item.label for result in results for item in result.detections or ()}
    spellings = {normalize(label) for label in found}
    missing = [name for name in truth.names if normalize(name) not in spellings]
    classes = match_classes(truth, found.union(missing), file=file)
    counts = Counter(item.name for item in truth.objects)
    unseen = [f"{name!r} ({counts[name]} objects)" for name in missing if counts[name]]
    notes = list(classes.notes)
    if unseen:
        notes.append(
            f"No result has {list_some(unseen)}: the AP is 0. If the model does not have the "
            "class, leave the category out of the labels"
        )
    return classes.label_of, tuple(notes)


def _boxes(
    truth: Truth, measured: Mapping[int, Result], label_of: Mapping[str, str]
) -> dict[int, list[TrueBox]]:
    boxes: dict[int, list[TrueBox]] = {index: [] for index in measured}
    for item in truth.objects:
        if item.image in measured and item.name in label_of:
            boxes[item.image].append(TrueBox(label_of[item.name], item.bbox, item.is_crowd))
    return boxes


def _nothing(
    truth: Truth,
    ambiguous: Sequence[int],
    result_of: Mapping[int, Result],
    file: Path,
    notes: Iterable[str],
) -> str:
    """Return why nothing can be measured."""
    reasons = list(notes)
    if len(result_of) + len(ambiguous) < len(truth.images):
        missing = len(truth.images) - len(result_of) - len(ambiguous)
        reasons.append(
            f"{missing} of {len(truth.images)} labelled images have no result. Labelled is "
            f"{list_some(image.name for image in truth.images)}"
        )
    if ambiguous:
        reasons.append(
            f"{len(ambiguous)} labelled images fit several results: "
            f"{list_some(truth.images[index].name for index in ambiguous)}"
        )
    return ". ".join([f"{file} has no object that can be measured", *reasons])


def _about_results(results: Iterable[Result], older: int) -> list[str]:
    """Return notes about what the results do not say."""
    results = list(results)
    notes = []
    models = Counter(result.model for result in results if result.model)
    if len(models) > 1:
        texts = (f"{model}: {count}" for model, count in models.most_common())
        notes.append(f"The results are those of {len(models)} models: {list_some(texts)}")
    if older:
        notes.append(f"Results of older generations of the same objects, left out: {older}")
    cuts = [result.faint_cut for result in results if result.faint_cut is not None]
    if max(cuts, default=0) > MIN_CONFIDENCE:
        notes.append(
            "Faint detections count too. Detections with a confidence below "
            f"{min(cuts):g} are not recorded"
            + (f", in some images those below {max(cuts):g}" if max(cuts) > min(cuts) else "")
            + ". So mAP is lower than with all detections of the model. Compare it only with "
            "results of the same STORE_CONFIDENCE"
        )
    if any(result.has_shapes for result in results):
        notes.append("The model has masks, keypoints or rotated boxes. Only upright boxes count")
    return notes


def _doubts(precision: Measured, results: Iterable[Result]) -> list[str]:
    """Return a warning if the labels probably do not fit the images."""
    confident = sum(
        item.confidence >= _CONFIDENT for result in results for item in result.detections or ()
    )
    map50 = precision.map50.value
    if map50 >= _MIN_PLAUSIBLE_MAP50 or not confident:
        return []
    return [
        f"WARNING: mAP50 is {100 * map50:.2f}, yet the results have {confident} detections with a "
        f"confidence of at least {_CONFIDENT}. The boxes, ids or sizes in the labels probably do "
        "not fit the images"
    ]
