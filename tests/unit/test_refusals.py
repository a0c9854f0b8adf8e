"""How a refusal of Cloud Storage is classified."""

import json

import pytest

from service.gcp.refusals import MIN_REFUSED_SECONDS, AccessHistory, Refusal, Scope


def body(reason: str, text: str = "refused") -> str:
    return json.dumps({"error": {"message": text, "errors": [{"reason": reason}]}})


@pytest.mark.parametrize(
    ("status", "reason", "scope"),
    [
        (400, "resourceIsEncryptedWithCustomerEncryptionKey", Scope.OBJECT),
        (400, "cloudKmsDisabledKey", Scope.OBJECT),
        (403, "cloudKmsDisabledKey", Scope.UNCLEAR),
        (400, "cloudKmsDecryptionKeyNotFound", Scope.UNCLEAR),
        (400, "userProjectMissing", Scope.OBJECT),
        (400, "invalid", Scope.UNCLEAR),
        (451, "", Scope.OBJECT),
        (400, "userProjectInvalid", Scope.EVERYTHING),
        (400, "turnedDown", Scope.EVERYTHING),
        (401, "authError", Scope.EVERYTHING),
        (401, "AuthenticationRequiredRequesterPays", Scope.EVERYTHING),
        (403, "accountDisabled", Scope.EVERYTHING),
        (403, "UserProjectAccountProblem", Scope.EVERYTHING),
        (403, "accessNotConfigured", Scope.EVERYTHING),
        (403, "rateLimitExceeded", Scope.TEMPORARY),
        (403, "userRateLimitExceeded", Scope.TEMPORARY),
        (403, "quotaExceeded", Scope.TEMPORARY),
        (403, "forbidden", Scope.UNCLEAR),
        (403, "insufficientPermissions", Scope.UNCLEAR),
        (400, "", Scope.UNCLEAR),
    ],
)
def test_reason_says_what_is_concerned(status: int, reason: str, scope: Scope) -> None:
    assert Refusal.read(status, body(reason)).scope is scope


@pytest.mark.parametrize(
    ("status", "text", "scope"),
    [
        (400, "The target object is encrypted by a customer-supplied encryption key.", "OBJECT"),
        (400, "Bucket is a requester pays bucket but no user project provided.", "OBJECT"),
        (400, "Cloud KMS encryption key is disabled, destroyed, or scheduled ...", "OBJECT"),
        (403, "Permission denied on Cloud KMS key. Please ensure that ...", "UNCLEAR"),
        (403, "Request is prohibited by organization's policy. vpcServiceC...", "EVERYTHING"),
        (
            403,
            "The billing account for the owning project is disabled in state absent",
            "EVERYTHING",
        ),
        (403, "The object exceeded the rate limit for ...", "TEMPORARY"),
        (403, "a@b does not have storage.objects.get access to the object.", "UNCLEAR"),
        (403, "", "UNCLEAR"),
    ],
)
def test_text_of_a_download_says_what_is_concerned(status: int, text: str, scope: str) -> None:
    assert Refusal.read(status, text).scope is Scope[scope]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"error": "x"}',
        '{"error": {"errors": {}}}',
        "[" * 100_000,
        "<html>",
    ],
)
def test_malformed_json_is_read_as_text(text: str) -> None:
    refusal = Refusal.read(403, text)
    assert refusal.scope is Scope.UNCLEAR
    assert len(refusal.sentence()) < 1000


def test_sentence_holds_one_short_line_of_what_was_written() -> None:
    sentence = Refusal.read(400, body("odd", "a\nb\x1b[31m" + "c" * 5000)).sentence()
    assert "400 odd: a b [31mccc" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 400


PLAIN = "does not have storage.objects.get access to"


@pytest.mark.parametrize(
    "text",
    [
        f"yolo@acme-cloudkms-prod.iam.gserviceaccount.com {PLAIN} the Google Cloud Storage object.",
        f"yolo@quota-team.iam.gserviceaccount.com {PLAIN} the Google Cloud Storage object.",
        f"a@b.c {PLAIN} 'the quota exceeded and Cloud KMS key.jpg'",
        f"a@b.c {PLAIN} projects/quota exceeded",
        f"a@b.c {PLAIN} uploads/no quota exceeded, Cloud KMS key disabled of requester pays bucket",
    ],
)
def test_words_of_names_are_no_reason(text: str) -> None:
    name = "no quota exceeded, Cloud KMS key disabled of requester pays bucket"
    for response in (text, json.dumps({"error": {"message": text}})):
        refusal = Refusal.read(403, response, name)
        assert refusal.scope is Scope.UNCLEAR
        assert "but not to the bucket" in refusal.sentence()


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        (f"a@b.c {PLAIN} the object.", "roles/storage.objectViewer"),
        ("Request is prohibited by organization's policy. vpcServiceControls", "perimeter"),
        ("The billing account for the owning project is disabled in state absent", "billing"),
    ],
)
def test_advice_is_of_the_cause(text: str, advice: str) -> None:
    assert advice in Refusal.read(403, text).advice()


@pytest.mark.parametrize(
    "page", ["<!DOCTYPE html><title>Error 400</title>", "x <script>alert(1)</script>", "<?xml ?>"]
)
def test_html_of_a_proxy_is_in_no_sentence(page: str) -> None:
    for text in (page, body(page, page)):
        refusal = Refusal.read(400, text)
        assert refusal.scope is Scope.UNCLEAR
        assert refusal.sentence() == "Cloud Storage refuses to serve this object (400)."


def test_refusal_is_lasting_after_ten_minutes_without_a_read() -> None:
    now = [0.0]
    history = AccessHistory(lambda: now[0])
    for minute in range(10):
        now[0] = minute * 60.0
        assert not history.note_refusal("uploads", "a")
    now[0] = MIN_REFUSED_SECONDS
    assert not history.note_refusal("uploads", "b")
    assert history.note_refusal("uploads", "a")
    history.note_read("uploads", "a")
    assert not history.note_refusal("uploads", "a")


def test_bucket_was_read_lately_for_ten_minutes() -> None:
    now = [0.0]
    history = AccessHistory(lambda: now[0])
    assert not history.was_read_lately("uploads")
    history.note_read("uploads", "b")
    assert history.was_read_lately("uploads")
    now[0] = MIN_REFUSED_SECONDS
    assert not history.was_read_lately("uploads")


def test_denied_permission_is_cached_for_30_seconds() -> None:
    now = [0.0]
    history = AccessHistory(lambda: now[0])
    assert not history.was_denied_lately("uploads")
    history.note_denial("uploads")
    assert history.was_denied_lately("uploads")
    assert not history.was_denied_lately("others")
    now[0] = 30.0
    assert not history.was_denied_lately("uploads")


def test_history_of_endless_objects_is_bounded() -> None:
    history = AccessHistory()
    for number in range(20_000):
        history.note_refusal("uploads", str(number))
        history.note_read(str(number))
        history.note_denial(str(number))
    kept = [len(times) for times in (history._refused, history._reads, history._denied)]
    assert kept == [10_000] * 3
