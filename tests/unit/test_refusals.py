"""What a refusal of Cloud Storage concerns, by what it says."""

import json

import pytest

from service.refusals import AccessHistory, Refusal, Scope


def body(reason: str, text: str = "refused") -> str:
    return json.dumps({"error": {"message": text, "errors": [{"reason": reason}]}})


@pytest.mark.parametrize(
    ("status", "reason", "scope"),
    [
        (400, "resourceIsEncryptedWithCustomerEncryptionKey", Scope.OBJECT),
        (400, "cloudKmsDisabledKey", Scope.OBJECT),
        (403, "cloudKmsKeyDisabled", Scope.OBJECT),
        (400, "cloudKmsDecryptionKeyNotFound", Scope.OBJECT),
        (400, "userProjectMissing", Scope.OBJECT),
        (400, "invalid", Scope.OBJECT),
        (451, "", Scope.OBJECT),
        (400, "userProjectInvalid", Scope.EVERYTHING),
        (400, "turnedDown", Scope.EVERYTHING),
        (401, "authError", Scope.EVERYTHING),
        (401, "AuthenticationRequiredRequesterPays", Scope.EVERYTHING),
        (403, "accountDisabled", Scope.EVERYTHING),
        (403, "UserProjectAccountProblem", Scope.EVERYTHING),
        (403, "accessNotConfigured", Scope.EVERYTHING),
        (403, "rateLimitExceeded", Scope.NOW),
        (403, "userRateLimitExceeded", Scope.NOW),
        (403, "quotaExceeded", Scope.NOW),
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
        (403, "Permission denied on Cloud KMS key. Please ensure that ...", "OBJECT"),
        (
            403,
            "The billing account for the owning project is disabled in state absent",
            "EVERYTHING",
        ),
        (403, "The object exceeded the rate limit for ...", "NOW"),
        (403, "a@b does not have storage.objects.get access to the object.", "UNCLEAR"),
        (403, "", "UNCLEAR"),
    ],
)
def test_text_of_a_download_says_what_is_concerned(status: int, text: str, scope: str) -> None:
    assert Refusal.read(status, text).scope is Scope[scope]


@pytest.mark.parametrize(
    "odd",
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
def test_odd_body_is_read_as_text(odd: str) -> None:
    refusal = Refusal.read(403, odd)
    assert refusal.scope is Scope.UNCLEAR
    assert len(refusal.sentence()) < 1000


def test_sentence_holds_one_short_line_of_what_was_written() -> None:
    sentence = Refusal.read(400, body("odd", "a\nb\x1b[31m" + "c" * 5000)).sentence()
    assert "400 odd: a b [31mccc" in sentence
    assert sentence.isprintable()
    assert len(sentence) < 400


def test_history_wants_two_refusals_and_a_read_between() -> None:
    history = AccessHistory()
    history.read("uploads")
    assert not history.is_refused_alone("uploads", "a")
    assert not history.is_refused_alone("uploads", "a")
    history.read("another")
    assert not history.is_refused_alone("uploads", "a")
    history.read("uploads")
    assert history.is_refused_alone("uploads", "a")
    assert not history.is_refused_alone("uploads", "b")


def test_history_of_endless_objects_is_bounded() -> None:
    history = AccessHistory()
    for number in range(20_000):
        history.is_refused_alone("uploads", str(number))
        history.read(str(number))
    assert (len(history._refused), len(history._reads)) == (10_000, 10_000)
