"""Plans of derived images with any coordinates, for hypothesis."""

from hypothesis import strategies as st

from service.derived import Crops, DeriveOptions, Normalized, Redaction
from service.domain import (
    Box,
    ClassScore,
    Detection,
    ImageInfo,
    Keypoint,
    Polygon,
    RotatedBox,
    Task,
)
from service.images.derive import DerivePlan

ALL = DeriveOptions(annotated=True, crops=Crops(), redaction=Redaction(), normalized=Normalized())
# A broken model returns any number.
ANY = st.floats(width=32, allow_nan=True, allow_infinity=True)
BOXES = st.builds(Box, ANY, ANY, ANY, ANY)
FOUND = st.builds(
    Detection,
    label=st.text(max_size=5),
    class_id=st.integers(0, 5),
    confidence=st.floats(0, 1),
    box=BOXES,
    polygons=st.tuples(st.builds(Polygon, st.tuples(ANY, ANY, ANY, ANY, ANY, ANY))),
    keypoints=st.tuples(st.builds(Keypoint, st.just("nose"), ANY, ANY, st.floats(0, 1))),
    rotated_box=st.builds(RotatedBox, ANY, ANY, ANY, ANY, st.floats(-90, 90)),
)
PLANS = st.builds(
    DerivePlan,
    options=st.just(ALL),
    image=st.builds(ImageInfo, st.integers(1, 9000), st.integers(1, 9000), st.just("PNG")),
    task=st.sampled_from(Task),
    detections=st.lists(FOUND, max_size=3).map(tuple),
    faint=st.lists(FOUND, max_size=3).map(tuple),
    classes=st.lists(st.builds(ClassScore, st.text(max_size=5), st.just(1), ANY)).map(tuple),
)
