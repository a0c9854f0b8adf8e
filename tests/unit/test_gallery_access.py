"""Who may open the gallery: a token on this machine, IAP in the cloud."""

import base64
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from flask import Flask
from flask.testing import FlaskClient

from service.errors import SettingsError, UnauthenticatedError
from service.gallery.access import IapAccess, LocalAccess
from service.gallery.app import create_app
from service.gallery.parts import GalleryParts
from service.gallery.settings import GallerySettings
from service.gcp.iap import ASSERTION, ISSUER, AssertionVerifier
from service.gcp.result_pages import Usage
from tests.fakes import PATIENCE_SECONDS, Clock
from tests.unit.test_tokens import CertificateServer

AUDIENCE = "/projects/1/locations/europe-west1/services/yolo-batch-gallery"
HERE = "http://127.0.0.1:8000"


def app_with(access: Any) -> Flask:
    """Return the real application. These tests read nothing from it but its refusals."""
    results: Any = SimpleNamespace(usage=Usage, reset_usage=lambda: None)
    nothing: Any = None
    app = create_app(GalleryParts(results, nothing, access, nothing))
    app.add_url_rule("/reviewer", "reviewer", access.reviewer)
    app.add_url_rule("/write", "write", lambda: "written", methods=["POST", "PUT", "DELETE"])
    return app


# --- On this machine


@pytest.fixture
def local() -> LocalAccess:
    return LocalAccess(8000)


@pytest.fixture
def visitor(local: LocalAccess) -> FlaskClient:
    return app_with(local).test_client()


@pytest.fixture
def owner(visitor: FlaskClient, local: LocalAccess) -> FlaskClient:
    visitor.get(local.first_path, base_url=HERE)
    return visitor


def test_first_address_is_exchanged_for_a_cookie(visitor: FlaskClient, local: LocalAccess) -> None:
    response = visitor.get(f"{local.first_path}&label=a%26b", base_url=HERE)
    assert (response.status_code, response.headers["Location"]) == (302, "/?label=a%26b")
    cookie = response.headers["Set-Cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/"))
    assert local.token not in cookie
    assert visitor.get("/reviewer", base_url=HERE).text == "local"


@pytest.mark.parametrize("path", ["/", "/reviewer", "/api/results", "/static/style.css", "/none"])
@pytest.mark.parametrize("token", [None, "", "wrong", "ü"])
def test_without_the_token_nothing_is_shown(
    visitor: FlaskClient, path: str, token: str | None
) -> None:
    response = visitor.get(path, base_url=HERE, query_string={"token": token} if token else {})
    assert response.status_code == 403
    assert "yolo-batch gallery" in response.text


def test_exchange_keeps_every_threshold(visitor: FlaskClient, local: LocalAccess) -> None:
    address = f"{local.first_path}&threshold_of=a%3A0.1&threshold_of=b%3A0.2"
    location = visitor.get(address, base_url=HERE).headers["Location"]
    assert location == "/?threshold_of=a%3A0.1&threshold_of=b%3A0.2"


@pytest.mark.parametrize("path", ["//evil.example/", "/\\evil.example", "/%0d%0aX-Evil: 1"])
def test_exchange_never_leads_to_another_host(
    visitor: FlaskClient, local: LocalAccess, path: str
) -> None:
    response = visitor.get(f"{path}?token={local.token}", base_url=HERE)
    location = response.headers.get("Location", "/")
    assert location.startswith("/") and not location.startswith(("//", "/\\"))
    assert "X-Evil" not in response.headers


@pytest.mark.parametrize(
    "host", ["evil.example:8000", "127.0.0.1", "127.0.0.1:9000", "a.localhost:8000"]
)
def test_other_host_names_are_refused(owner: FlaskClient, local: LocalAccess, host: str) -> None:
    for path in ("/reviewer", local.first_path):
        response = owner.get(path, base_url="http://127.0.0.1:8000", headers={"Host": host})
        assert response.status_code == 403


@pytest.mark.parametrize("method", ["post", "put", "delete"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"X-CSRF-Token": "wrong"}, 403),
        ({"X-CSRF-Token": "RIGHT"}, 200),
        ({"X-CSRF-Token": "RIGHT", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"X-CSRF-Token": "RIGHT", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"X-CSRF-Token": "RIGHT", "Sec-Fetch-Site": "same-site"}, 403),
        ({"X-CSRF-Token": "RIGHT", "Origin": "http://evil.example"}, 403),
        ({"X-CSRF-Token": "RIGHT", "Origin": "http://127.0.0.1:8000"}, 200),
        ({"X-CSRF-Token": "RIGHT", "Origin": "null"}, 403),
        ({"X-CSRF-Token": "RIGHT", "Origin": "http://["}, 403),
    ],
)
def test_writes_need_the_pages_own_token(
    owner: FlaskClient, local: LocalAccess, method: str, headers: dict[str, str], status: int
) -> None:
    given = {name: value.replace("RIGHT", local.csrf_token()) for name, value in headers.items()}
    response = getattr(owner, method)("/write", base_url=HERE, headers=given)
    assert response.status_code == status


def test_each_start_has_another_token() -> None:
    first, second = LocalAccess(8000), LocalAccess(8000)
    assert len({first.token, second.token, first.csrf_token(), second.csrf_token()}) == 4


def test_every_response_has_the_headers(owner: FlaskClient) -> None:
    for path in ("/", "/none", "/static/style.css", "/health/ready"):
        with owner.get(path, base_url=HERE) as response:
            headers = response.headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_health_shows_nothing_to_anybody(visitor: FlaskClient) -> None:
    response = visitor.get("/health/ready", base_url="http://10.0.0.1")
    assert (response.status_code, response.data) == (204, b"")


# --- Behind Identity-Aware Proxy


class Signer:
    """A key like those of IAP."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        public = self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        self.public = public.decode()

    def sign(self, claims: Any, **header: Any) -> str:
        parts = [{"alg": "ES256", "typ": "JWT", "kid": "one"} | header, claims]
        text = ".".join(_encoded(json.dumps(part).encode()) for part in parts)
        r, s = decode_dss_signature(self.key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def claims(**changes: Any) -> dict[str, Any]:
    now = int(time.time())
    fields = {"iss": ISSUER, "aud": AUDIENCE, "email": "a@example.com", "sub": "accounts:1"}
    return fields | {"iat": now - 60, "exp": now + 600} | changes


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


@pytest.fixture
def keys(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> Iterator[CertificateServer]:
    monkeypatch.setattr("service.gcp.signed_tokens._FETCH_TIMEOUT_SECONDS", PATIENCE_SECONDS)
    running = CertificateServer()
    running.body = json.dumps({"one": signer.public}).encode()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def viewer(keys: CertificateServer) -> FlaskClient:
    verifier = AssertionVerifier(AUDIENCE, keys_url=keys.url, clock=Clock())
    return app_with(IapAccess(verifier)).test_client()


def test_reviewer_is_whom_iap_has_signed(viewer: FlaskClient, signer: Signer) -> None:
    headers = {
        ASSERTION: signer.sign(claims()),
        "X-Goog-Authenticated-User-Email": "accounts.google.com:chief@example.com",
    }
    assert viewer.get("/reviewer", headers=headers).text == "a@example.com"


def test_email_header_alone_opens_nothing(viewer: FlaskClient) -> None:
    headers = {"X-Goog-Authenticated-User-Email": "accounts.google.com:a@example.com"}
    for path in ("/reviewer", "/", "/api/results", "/static/style.css", "/none"):
        assert viewer.get(path, headers=headers).status_code == 401


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://accounts.google.com"},
        {"aud": "/projects/2/locations/europe-west1/services/yolo-batch-gallery"},
        {"aud": None},
        {"exp": int(time.time()) - 3600},
        {"iat": int(time.time()) + 3600},
        {"email": None},
        {"email": ""},
        {"email": ["a@example.com"]},
    ],
)
def test_assertion_for_something_else_is_refused(
    viewer: FlaskClient, signer: Signer, changes: dict[str, Any]
) -> None:
    response = viewer.get("/reviewer", headers={ASSERTION: signer.sign(claims(**changes))})
    assert response.status_code == 401
    assert "GALLERY_AUDIENCE" in response.text


@pytest.mark.parametrize(
    "assertion",
    ["x", "a.b.c", "..", "ü", "{}", "null", _encoded(b"{}") + "." + _encoded(b"{}") + "."],
)
def test_malformed_assertion_is_refused(viewer: FlaskClient, assertion: str) -> None:
    response = viewer.get("/reviewer", headers={ASSERTION: assertion})
    assert response.status_code == 401


@pytest.mark.parametrize(
    "header", [{"alg": "none"}, {"alg": "HS256"}, {"alg": "RS256"}, {"kid": "two"}]
)
def test_other_algorithm_or_key_is_refused(
    viewer: FlaskClient, signer: Signer, header: dict[str, str]
) -> None:
    response = viewer.get("/reviewer", headers={ASSERTION: signer.sign(claims(), **header)})
    assert response.status_code == 401


def test_key_of_somebody_else_is_refused(viewer: FlaskClient) -> None:
    response = viewer.get("/reviewer", headers={ASSERTION: Signer().sign(claims())})
    assert response.status_code == 401


def test_keys_are_fetched_once(
    viewer: FlaskClient, signer: Signer, keys: CertificateServer
) -> None:
    for _ in range(3):
        assert (
            viewer.get("/reviewer", headers={ASSERTION: signer.sign(claims())}).status_code == 200
        )
    assert keys.fetches == 1


def test_new_key_is_known_after_some_minutes(signer: Signer, keys: CertificateServer) -> None:
    clock = Clock()
    verifier = AssertionVerifier(AUDIENCE, keys_url=keys.url, clock=clock)
    verifier.email(signer.sign(claims()))
    later = Signer()
    keys.body = json.dumps({"one": signer.public, "two": later.public}).encode()
    with pytest.raises(UnauthenticatedError):
        verifier.email(later.sign(claims(), kid="two"))
    clock.now += 301
    assert verifier.email(later.sign(claims(), kid="two")) == "a@example.com"


def test_without_keys_nobody_is_let_in(
    viewer: FlaskClient, signer: Signer, keys: CertificateServer
) -> None:
    keys.status = 500
    response = viewer.get("/reviewer", headers={ASSERTION: signer.sign(claims())})
    assert response.status_code == 503


def test_token_of_a_page_belongs_to_its_reviewer(viewer: FlaskClient, signer: Signer) -> None:
    def headers(email: str) -> dict[str, str]:
        return {ASSERTION: signer.sign(claims(email=email))}

    token = token_of(viewer.get("/none", headers=headers("a@example.com")).text)
    for email, status in (("a@example.com", 200), ("b@example.com", 403)):
        response = viewer.post("/write", headers=headers(email) | {"X-CSRF-Token": token})
        assert response.status_code == status


def token_of(page: str) -> str:
    return page.split('name="csrf-token" content="')[1].split('"')[0]


def test_token_of_a_page_is_valid_on_each_instance(
    viewer: FlaskClient, signer: Signer, keys: CertificateServer
) -> None:
    headers = {ASSERTION: signer.sign(claims())}
    page = viewer.get("/none", headers=headers)
    cookie = page.headers["Set-Cookie"]
    assert all(part in cookie for part in ("Secure", "HttpOnly", "SameSite=Strict", "Path=/"))
    verifier = AssertionVerifier(AUDIENCE, keys_url=keys.url, clock=Clock())
    other = app_with(IapAccess(verifier)).test_client(use_cookies=False)
    headers["X-CSRF-Token"] = token_of(page.text)
    assert other.post("/write", headers=headers).status_code == 403
    headers["Cookie"] = cookie.partition(";")[0]
    assert other.post("/write", headers=headers).status_code == 200


def test_settings_name_the_wrong_variable() -> None:
    assert GallerySettings.from_env({}) == GallerySettings()
    own = GallerySettings.from_env({"GALLERY_ORIGINALS": "false", "GALLERY_JOBS_TOPIC": "jobs"})
    assert (own.originals, own.jobs_topic) == (False, "jobs")
    with pytest.raises(SettingsError, match="GALLERY_ORIGINALS"):
        GallerySettings.from_env({"GALLERY_ORIGINALS": "no"})
