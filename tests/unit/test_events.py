"""Every form of a request, as pairs of JSON files in `tests/data/events`, and malformed ones."""

import base64
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain import Event, ImageRef
from service.errors import EnvelopeError
from service.events import parse_event, parse_uri

EVENTS = Path(__file__).parent.parent / "data" / "events"
NAMES = sorted(path.name.removesuffix("-input.json") for path in EVENTS.glob("*-input.json"))

MARKER = "marker7f3a"  # in every malformed input; no error may repeat it
FINALIZED = {"ce-type": "google.cloud.storage.object.v1.finalized"}
PUBLISHED = {"ce-type": "google.cloud.pubsub.topic.v1.messagePublished"}
STRUCTURED = {"content-type": "application/cloudevents+json"}
NOTIFICATION = {"eventType": "OBJECT_FINALIZE", "bucketId": "uploads"}

property_test = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the autouse ones
)


def load(name: str, end: str) -> Any:
    return json.loads((EVENTS / f"{name}-{end}.json").read_text(encoding="utf-8"))


def plain(event: Event) -> dict[str, Any]:
    """Return an event in the form of the expected files."""
    image = asdict(event.ref) if event.ref else None
    if image:
        permission = image.pop("replace")
        image |= image.pop("metadata")
        del image["created_at"]  # events do not contain it
        for field in ("custom", "is_custom_cut"):
            if not image[field]:
                del image[field]
        if permission:
            before = permission["if_created_before"].isoformat()
            image["replace"] = permission | {"if_created_before": before}
    return {
        "image": image,
        "event_time": event.event_time.isoformat() if event.event_time else None,
        "ignored": bool(event.ignored),
        "is_job": event.is_job,
        "delivery_attempt": event.delivery_attempt,
    } | ({"is_overwritten": event.is_overwritten} if event.is_deletion else {})


def image_of(event: Event) -> ImageRef:
    assert event.ref
    return event.ref


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def push(data: Any = None, attributes: Any = None) -> bytes:
    """Return a wrapped push of JSON data."""
    message = {"data": base64.b64encode(dumps(data)).decode(), "attributes": attributes}
    return dumps({"message": message})


def resource(**changes: Any) -> dict[str, Any]:
    """Return an object resource with changes; None removes a field."""
    fields = {"bucket": "uploads", "name": MARKER, "generation": "1"} | changes
    return {key: value for key, value in fields.items() if value is not None}


@pytest.mark.parametrize("name", NAMES)
def test_parse_event_of_known_form_gives_its_image(name: str) -> None:
    request = load(name, "input")
    body = request["body_text"].encode() if "body_text" in request else dumps(request["body"])
    assert plain(parse_event(request["headers"], body)) == load(name, "expected")


def test_the_event_files_are_pairs() -> None:
    assert len(NAMES) >= 40
    assert sorted(path.name for path in EVENTS.iterdir()) == sorted(
        f"{name}-{end}.json" for name in NAMES for end in ("input", "expected")
    )


def test_parse_event_of_utf8_and_escaped_json_is_the_same() -> None:
    fields = resource(name="日本/😀.jpg")
    escaped = parse_event(FINALIZED, json.dumps(fields).encode())
    assert escaped == parse_event(FINALIZED, json.dumps(fields, ensure_ascii=False).encode())
    assert escaped.ref == ImageRef("uploads", "日本/😀.jpg", 1)


def test_parse_event_time_is_aware() -> None:
    headers = FINALIZED | {"ce-time": "2026-09-24T13:12:11.207123+02:00"}
    event = parse_event(headers, dumps(resource()))
    assert event.event_time == datetime(2026, 9, 24, 11, 12, 11, 207123, tzinfo=UTC)


def test_parse_event_of_largest_generation_keeps_it() -> None:
    event = parse_event(FINALIZED, dumps(resource(generation=str(2**63 - 1))))
    assert image_of(event).generation == 2**63 - 1


@pytest.mark.parametrize("uris", [[], ["gs://uploads/a"], ["gs://uploads/a", "gs://uploads/b"]])
def test_job_of_several_images_says_how_to_publish_them(uris: list[str]) -> None:
    for job in ({"uris": uris}, {"uris": uris, "uri": "gs://uploads/a"}):
        with pytest.raises(EnvelopeError, match="publish one message .* for each"):
            parse_event({}, push(job))


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [(1, 1), (50, 50), (None, None), (0, None), (-1, None), ("2", None), (True, None), (1.5, None)],
    ids=repr,
)
def test_delivery_attempt_is_a_count_or_unknown(attempt: Any, expected: int | None) -> None:
    envelope = json.loads(push({"uri": "gs://uploads/a"})) | {"deliveryAttempt": attempt}
    assert parse_event({}, dumps(envelope)).delivery_attempt == expected
    assert parse_event(PUBLISHED, dumps(envelope)).delivery_attempt == expected


@pytest.mark.parametrize("bucket", ["abc", "a.b-c_d", "1" * 63, "a" * 222])
def test_parse_event_takes_bucket_names_that_exist(bucket: str) -> None:
    assert image_of(parse_event(FINALIZED, dumps(resource(bucket=bucket)))).bucket == bucket


JOB = {"uri": f"gs://uploads/{MARKER}"}
BEFORE = {"if_created_before": "2026-11-21T14:36:54Z"}

UNREADABLE: dict[str, tuple[dict[str, str], bytes]] = {
    "empty body": ({}, b""),
    "blank body": ({}, b" \n"),
    "not JSON": ({}, MARKER.encode()),
    "JSON cut short": ({}, b'{"uri": "gs://uploads/' + MARKER.encode()),
    "not UTF-8": ({}, b'"' + MARKER.encode() + b'\xff"'),
    "nested arrays": ({}, f'{{"{MARKER}":'.encode() + b"[" * 60_000),
    "nested arrays, closed": ({}, b"[" * 60_000 + b"]" * 60_000),
    "nested objects": ({}, f'{{"{MARKER}":'.encode() * 9_000),
    "nested arrays in the data": (
        {},
        dumps({"message": {"data": base64.b64encode(b"[" * 60_000).decode()}}),
    ),
    "number of 5000 digits": ({}, b'{"generation": ' + b"1" * 5000 + b"}"),
    "null": ({}, b"null"),
    "number": ({}, b"7"),
    "NaN": ({}, b"NaN"),
    "text": ({}, dumps(MARKER)),
    "list": ({}, dumps([MARKER])),
    "empty object": ({}, b"{}"),
    "unknown object": ({}, dumps({MARKER: MARKER})),
    "object without its kind": ({}, dumps(resource())),
    "form": ({"content-type": "application/x-www-form-urlencoded"}, f"uri={MARKER}".encode()),
    "batch of CloudEvents": ({"content-type": "application/cloudevents-batch+json"}, b"[{}]"),
    "unknown CloudEvent": ({"ce-type": MARKER}, dumps(resource())),
    "storage CloudEvent of version 2": (
        {"ce-type": "google.cloud.storage.object.v2.finalized"},
        dumps(resource()),
    ),
    "CloudEvent without data": (FINALIZED, b""),
    "CloudEvent with a list": (FINALIZED, dumps([MARKER])),
    "published without a message": (PUBLISHED, dumps(resource())),
    "published with a list": (PUBLISHED, dumps([MARKER])),
    "structured list": (STRUCTURED, dumps([MARKER])),
    "structured without type": (STRUCTURED, dumps({"data": resource()})),
    "structured type a number": (STRUCTURED, dumps({"type": 7, "data": resource()})),
    "structured type unknown": (STRUCTURED, dumps({"type": MARKER, "data": resource()})),
    "structured without data": (STRUCTURED, dumps({"type": FINALIZED["ce-type"]})),
    "structured data a text": (STRUCTURED, dumps({"type": FINALIZED["ce-type"], "data": MARKER})),
    "structured bad base64": (
        STRUCTURED,
        dumps({"type": FINALIZED["ce-type"], "data_base64": f"{MARKER}!"}),
    ),
    "structured base64 a number": (
        STRUCTURED,
        dumps({"type": FINALIZED["ce-type"], "data_base64": 7}),
    ),
    "message null": ({}, dumps({"message": None})),
    "message a text": ({}, dumps({"message": MARKER})),
    "message a list": ({}, dumps({"message": [MARKER]})),
    "message empty": ({}, dumps({"message": {}})),
    "attributes a text": ({}, dumps({"message": {"attributes": MARKER}})),
    "attributes a list": ({}, dumps({"message": {"attributes": [MARKER]}})),
    "data a number": ({}, dumps({"message": {"data": 7}})),
    "data an object": ({}, dumps({"message": {"data": {MARKER: 1}}})),
    "data not base64": ({}, dumps({"message": {"data": f"!{MARKER}!"}})),
    "data of base64 without padding": ({}, dumps({"message": {"data": "YQ"}})),
    "data not ASCII": ({}, dumps({"message": {"data": f"é{MARKER}"}})),
    "data not JSON": (
        {},
        dumps({"message": {"data": base64.b64encode(MARKER.encode()).decode()}}),
    ),
    "data binary": ({}, dumps({"message": {"data": base64.b64encode(b"\xff\xd8\xff").decode()}})),
    "data a JSON text": ({}, push(MARKER)),
    "data a JSON list": ({}, push([MARKER])),
    "notification data a list": ({}, push([MARKER], NOTIFICATION)),
    "notification data without name": ({}, push(resource(name=None), NOTIFICATION)),
    "notification without data or name": ({}, push(None, NOTIFICATION | {"objectGeneration": "1"})),
    "notification without data or generation": ({}, push(None, NOTIFICATION | {"objectId": "a"})),
    "notification bucket a number": ({}, push(None, NOTIFICATION | {"bucketId": 7})),
    "job with both": ({}, push({"uri": f"gs://uploads/{MARKER}", "uris": []})),
    "job with neither": ({}, push({"url": f"gs://uploads/{MARKER}"})),
    "uri a number": ({}, push({"uri": 7})),
    "uri a list": ({}, push({"uri": [f"gs://uploads/{MARKER}"]})),
    "uri null": ({}, push({"uri": None})),
    "uri NaN": ({}, b'{"uri": NaN}'),
    "uris null": ({}, push({"uris": None})),
    "uris a text": ({}, push({"uris": f"gs://uploads/{MARKER}"})),
    "uris of one": ({}, push({"uris": [f"gs://uploads/{MARKER}"]})),
    "uris of many": ({}, push({"uris": [f"gs://uploads/{MARKER}{i}" for i in range(1001)]})),
    "uri of http": ({}, push({"uri": f"https://uploads/{MARKER}"})),
    "uri of upper case": ({}, push({"uri": f"GS://uploads/{MARKER}"})),
    "uri without object": ({}, push({"uri": f"gs://{MARKER}"})),
    "uri with empty object": ({}, push({"uri": f"gs://{MARKER}/"})),
    "uri without bucket": ({}, push({"uri": f"gs:///{MARKER}"})),
    "uri with a space before": ({}, push({"uri": f" gs://uploads/{MARKER}"})),
    "uri of generation 0": ({}, push({"uri": f"gs://uploads/{MARKER}#0"})),
    "uri of generation 2**63": ({}, push({"uri": f"gs://uploads/{MARKER}#{2**63}"})),
    "uri with a lone surrogate": ({}, push({"uri": f"gs://uploads/{MARKER}\ud800"})),
    "uri over 1024 bytes": ({}, push({"uri": f"gs://uploads/{MARKER}{'é' * 508}"})),
    "uri of a bad bucket": ({}, push({"uri": f"gs://{MARKER.upper()}/a"})),
    "replace null": ({}, push(JOB | {"replace": None})),
    "replace a text": ({}, push(JOB | {"replace": MARKER})),
    "replace empty": ({}, push(JOB | {"replace": {}})),
    "replace before a text": ({}, push(JOB | {"replace": {"if_created_before": MARKER}})),
    "replace before a number": ({}, push(JOB | {"replace": {"if_created_before": 7}})),
    "replace before a time without zone": (
        {},
        push(JOB | {"replace": {"if_created_before": "2026-11-21T14:36:54"}}),
    ),
    "replace before the year 1": (
        {},
        push(JOB | {"replace": {"if_created_before": "0001-01-01T00:00:00+23:59"}}),
    ),
    "replace unless a model's name": (
        {},
        push(JOB | {"replace": BEFORE | {"unless_model": MARKER}}),
    ),
    "replace unless a model in capitals": (
        {},
        push(JOB | {"replace": BEFORE | {"unless_model": "A" * 64}}),
    ),
    "replace unless a model and a newline": (
        {},
        push(JOB | {"replace": BEFORE | {"unless_model": "a" * 63 + "\n"}}),
    ),
    "replace unless a model a number": ({}, push(JOB | {"replace": BEFORE | {"unless_model": 7}})),
    "replace without uri": ({}, push({"replace": BEFORE})),
    "generation missing": (FINALIZED, dumps(resource(generation=None))),
    "generation a text": (FINALIZED, dumps(resource(generation=MARKER))),
    "generation empty": (FINALIZED, dumps(resource(generation=""))),
    "generation true": (FINALIZED, dumps(resource(generation=True))),
    "generation a fraction": (FINALIZED, dumps(resource(generation=1.5))),
    "generation NaN": (FINALIZED, dumps(resource(generation=float("nan")))),
    "generation negative": (FINALIZED, dumps(resource(generation=-1))),
    "generation negative text": (FINALIZED, dumps(resource(generation="-1"))),
    "generation signed": (FINALIZED, dumps(resource(generation="+1"))),
    "generation with spaces": (FINALIZED, dumps(resource(generation=" 1 "))),
    "generation with underscores": (FINALIZED, dumps(resource(generation="1_0"))),
    "generation of other digits": (FINALIZED, dumps(resource(generation="١٢"))),
    "generation zero": (FINALIZED, dumps(resource(generation=0))),
    "generation 2**63": (FINALIZED, dumps(resource(generation=2**63))),
    "generation of 4000 digits": (FINALIZED, dumps(resource(generation="1" * 4000))),
    "bucket missing": (FINALIZED, dumps(resource(bucket=None))),
    "bucket a number": (FINALIZED, dumps(resource(bucket=7))),
    "bucket a list": (FINALIZED, dumps(resource(bucket=[MARKER]))),
    "bucket with a slash": (FINALIZED, dumps(resource(bucket=f"{MARKER}/a"))),
    "bucket of upper case": (FINALIZED, dumps(resource(bucket=MARKER.upper()))),
    "bucket too short": (FINALIZED, dumps(resource(bucket="ab"))),
    "bucket too long": (FINALIZED, dumps(resource(bucket="a" * 223))),
    "bucket with a newline": (FINALIZED, dumps(resource(bucket=f"{MARKER}\n"))),
    "bucket of dots": (FINALIZED, dumps(resource(bucket="..."))),
    "bucket with non-ASCII letters": (FINALIZED, dumps(resource(bucket=f"{MARKER}é"))),
    "bucket with a lone surrogate": (FINALIZED, dumps(resource(bucket=f"{MARKER}\udfff"))),
    "name missing": (FINALIZED, dumps(resource(name=None))),
    "name empty": (FINALIZED, dumps(resource(name=""))),
    "name a number": (FINALIZED, dumps(resource(name=7))),
    "name over 1024 bytes": (FINALIZED, dumps(resource(name=MARKER + "x" * 1015))),
    "name over 1024 bytes in fewer characters": (FINALIZED, dumps(resource(name="日" * 342))),
    "name with a lone surrogate": (FINALIZED, dumps(resource(name=f"{MARKER}\ud800.jpg"))),
    "size a text": (FINALIZED, dumps(resource(size=MARKER))),
    "size NaN": (FINALIZED, dumps(resource(size=float("nan")))),
    "size negative": (FINALIZED, dumps(resource(size=-1))),
    "content type a number": (FINALIZED, dumps(resource(contentType=7))),
    "md5 a list": (FINALIZED, dumps(resource(md5Hash=[MARKER]))),
    # Text that Firestore cannot store must be rejected here: its document could never be written.
    "size over 2**63": (FINALIZED, dumps(resource(size=str(2**63)))),
    "content type with a lone surrogate": (FINALIZED, dumps(resource(contentType="\ud800"))),
    "md5 with a lone surrogate": (FINALIZED, dumps(resource(md5Hash="\ud800"))),
    "crc32c with a lone surrogate": (FINALIZED, dumps(resource(crc32c="\ud800"))),
}


@pytest.mark.parametrize(("headers", "body"), UNREADABLE.values(), ids=UNREADABLE)
def test_parse_event_of_unreadable_request_repeats_nothing(
    headers: dict[str, str], body: bytes
) -> None:
    with pytest.raises(EnvelopeError) as raised:
        parse_event(headers, body)
    sentence = str(raised.value)
    assert MARKER not in sentence.lower()
    assert sentence and len(sentence) < 120


def test_parse_event_restores_a_name_that_wsgi_garbled() -> None:
    """Without a body, the object's name comes from a header, which WSGI decodes as Latin-1."""
    header = "é.jpg".encode().decode("latin-1")
    headers = NOTIFICATION | {"objectId": header, "objectGeneration": "1"}
    try:
        names = [image_of(parse_event(headers, b"")).name]
    except EnvelopeError:
        names = []
    assert names in ([], ["é.jpg"])


def test_parse_event_of_time_out_of_utc_range_drops_it() -> None:
    """In UTC, this time is before the year 1. Firestore could not store it."""
    headers = FINALIZED | {"ce-time": "0001-01-01T00:00:00+23:59"}
    event = parse_event(headers, dumps(resource()))
    assert event.event_time is None
    assert event.ref


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("gs://uploads/a", ImageRef("uploads", "a")),
        ("gs://uploads/a#7", ImageRef("uploads", "a", 7)),
        ("gs://uploads/a#", ImageRef("uploads", "a#")),
        ("gs://uploads/a#b", ImageRef("uploads", "a#b")),
        ("gs://uploads/a#7#8", ImageRef("uploads", "a#7", 8)),
        ("gs://uploads/a#7\n", ImageRef("uploads", "a#7\n")),
        ("gs://uploads/a#٧", ImageRef("uploads", "a#٧")),
    ],
    ids=["plain", "generation", "hash", "hash-text", "two", "newline", "other-digits"],
)
def test_parse_uri_reads_only_a_final_number_as_generation(uri: str, expected: ImageRef) -> None:
    assert parse_uri(uri) == expected


@pytest.mark.parametrize("name", [".", ".."])
def test_parse_uri_of_a_dot_name_raises(name: str) -> None:
    """Cloud Storage has no such objects, and HTTP clients resolve such paths."""
    with pytest.raises(EnvelopeError):
        parse_uri(f"gs://uploads/{name}")


def test_parse_uri_of_many_hashes_ends_soon() -> None:
    name = "#1" * 500
    assert parse_uri(f"gs://uploads/{name}#5") == ImageRef("uploads", name, 5)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
some_keys = st.sampled_from(
    ["bucket", "name", "generation", "size", "contentType", "kind", "uri", "uris", "time", "type"]
    + ["replace", "if_created_before", "unless_model", "deliveryAttempt"]
    + ["data", "data_base64", "message", "attributes", "eventType", "bucketId", "objectId"]
)
near_misses = st.dictionaries(
    some_keys,
    json_values | st.sampled_from(["uploads", "a.jpg", "1", 1, "storage#object", "gs://abc/d"]),
    max_size=6,
)
some_headers = st.sampled_from([{}, FINALIZED, PUBLISHED, STRUCTURED, NOTIFICATION])


def assert_read_or_refused(headers: dict[str, str], body: bytes) -> None:
    try:
        event = parse_event(headers, body)
    except EnvelopeError:
        return
    assert bool(event.ignored) != bool(event.ref)


@property_test
@given(headers=some_headers, body=st.binary(max_size=200))
def test_parse_event_of_any_bytes_reads_or_raises(headers: dict[str, str], body: bytes) -> None:
    assert_read_or_refused(headers, body)


@property_test
@given(headers=some_headers, value=json_values)
def test_parse_event_of_any_json_reads_or_raises(headers: dict[str, str], value: Any) -> None:
    assert_read_or_refused(headers, dumps(value))
    assert_read_or_refused(headers, push(value))


@property_test
@given(headers=some_headers, value=near_misses, attributes=near_misses)
def test_parse_event_of_shuffled_fields_reads_or_raises(
    headers: dict[str, str], value: dict[str, Any], attributes: dict[str, Any]
) -> None:
    assert_read_or_refused(headers, dumps(value))
    assert_read_or_refused(headers, push(value, attributes))
    assert_read_or_refused(headers, dumps({"message": value, "type": FINALIZED["ce-type"]}))


@property_test
@given(key=st.sampled_from(["ce-time", "eventTime", "time"]), text=st.text(st.characters()))
def test_parse_event_of_any_time_is_read(key: str, text: str) -> None:
    headers = FINALIZED | {key: text}
    assert parse_event(headers, dumps(resource())).ref
