"""Verification of OIDC tokens, with real keys and a local server for the certificates."""

import base64
import datetime
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from service.errors import CertificatesUnavailableError, ForbiddenError, UnauthenticatedError
from service.gcp.push_auth import ISSUER, TokenVerifier
from service.server.app import create_app
from service.server.wsgi import _verifier
from service.settings import Settings
from tests.fakes import PATIENCE_SECONDS, Clock, FakeDetector, FakeStorage, FakeStore, pipeline_of

AUDIENCE = "https://push.example"
PUSHER = "pusher@my-project.iam.gserviceaccount.com"
SECRET = "secret7f3a"

Claims = dict[str, Any]


class Signer:
    """A signing key with its certificate, like those of Google."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "signer.example")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(1)
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .sign(self.key, hashes.SHA256())
        )
        self.certificate = certificate.public_bytes(serialization.Encoding.PEM).decode()

    def sign(self, claims: Any, **header: Any) -> str:
        """Return a token, signed with RS256 unless the header has another algorithm."""
        parts = [{"alg": "RS256", "typ": "JWT", "kid": "one"} | header, claims]
        signed = ".".join(encoded(json.dumps(part).encode()) for part in parts)
        signature = self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256())
        return f"{signed}.{encoded(signature)}"


def encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


class CertificateServer:
    """A local server for the certificates."""

    def __init__(self) -> None:
        self.status, self.body, self.fetches = 200, b"{}", 0
        serve = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                serve.fetches += 1
                self.send_response(serve.status)
                self.end_headers()
                self.wfile.write(serve.body)

            def log_message(self, *_: Any) -> None:
                """Log nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/certs"
        threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


@pytest.fixture
def server(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> Iterator[CertificateServer]:
    monkeypatch.setattr("service.gcp.signed_tokens._FETCH_TIMEOUT_SECONDS", PATIENCE_SECONDS)
    running = CertificateServer()
    running.body = json.dumps({"one": signer.certificate}).encode()
    yield running
    running.http.shutdown()
    running.http.server_close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(server: CertificateServer, clock: Clock) -> TokenVerifier:
    accounts = (PUSHER, "other@example.com")
    return TokenVerifier(AUDIENCE, accounts, certs_url=server.url, clock=clock)


def claims(**changes: Any) -> Claims:
    """Return the claims of a push with changes; None removes a claim."""
    now = int(time.time())
    fields = {"iss": ISSUER, "aud": AUDIENCE, "email": PUSHER, "email_verified": True}
    fields |= {"sub": "113774264463038321964", "azp": "113774264463038321964"}
    fields |= {"iat": now - 60, "exp": now + 3000} | changes
    return {name: value for name, value in fields.items() if value is not None}


def test_verify_lets_a_push_of_an_allowed_account_through(
    verifier: TokenVerifier, signer: Signer
) -> None:
    verifier.verify(f"Bearer {signer.sign(claims())}")
    verifier.verify(f"bearer  {signer.sign(claims(email='other@example.com'))} ")


@pytest.mark.parametrize(
    "changes",
    [
        {"iss": "https://accounts.example"},
        {"iss": None},
        {"iss": [ISSUER]},
        {"aud": AUDIENCE + "/"},
        {"aud": None},
        {"aud": [AUDIENCE]},
        {"exp": 1_700_000_000},
        {"exp": None},
        {"exp": "never"},
        {"iat": 32_000_000_000, "exp": 32_000_003_600},
        {"iat": None},
    ],
    ids=str,
)
def test_verify_of_another_claim_is_unauthenticated(
    verifier: TokenVerifier, signer: Signer, changes: Claims
) -> None:
    with pytest.raises(UnauthenticatedError):
        verifier.verify(f"Bearer {signer.sign(claims(**changes))}")


@pytest.mark.parametrize(
    "changes",
    [
        {"email": "pusher@evil.example"},
        {"email": PUSHER.upper()},
        {"email": [PUSHER]},
        {"email": None},
        {"email_verified": False},
        {"email_verified": "true"},
        {"email_verified": None},
    ],
    ids=str,
)
def test_verify_of_another_account_is_forbidden(
    verifier: TokenVerifier, signer: Signer, changes: Claims
) -> None:
    with pytest.raises(ForbiddenError):
        verifier.verify(f"Bearer {signer.sign(claims(**changes))}")


def test_verify_of_a_strangers_signature_is_unauthenticated(
    verifier: TokenVerifier,
) -> None:
    with pytest.raises(UnauthenticatedError):
        verifier.verify(f"Bearer {Signer().sign(claims())}")


def test_claims_changed_after_signing_are_unauthenticated(
    verifier: TokenVerifier, signer: Signer
) -> None:
    head, _, signature = signer.sign(claims(email="other@example.com")).split(".")
    forged = f"{head}.{encoded(json.dumps(claims()).encode())}.{signature}"
    with pytest.raises(UnauthenticatedError):
        verifier.verify(f"Bearer {forged}")


@pytest.mark.parametrize(
    "header",
    [{"alg": "none"}, {"alg": "HS256"}, {"alg": "ES256"}, {"alg": None}, {"alg": ["RS256"]}]
    + [{"kid": None}, {"kid": 1}, {"kid": ["one"]}, {"kid": {}}],
    ids=str,
)
def test_wrong_algorithm_or_no_key_id_is_401_without_a_fetch(
    verifier: TokenVerifier, signer: Signer, server: CertificateServer, header: Claims
) -> None:
    with pytest.raises(UnauthenticatedError):
        verifier.verify(f"Bearer {signer.sign(claims(), **header)}")
    assert server.fetches == 0


def bomb(depth: int = 5000) -> str:
    return encoded(b"[" * depth)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {SECRET}",
        f"Bearer {SECRET}",
        f"Bearer {SECRET}.{SECRET}.{SECRET}",
        f"Bearer {SECRET} {SECRET}",
        "Bearer ..",
        "Bearer é.ÿ.\x00",
        f"Bearer {encoded(b'[]')}.{encoded(b'{}')}.",
        f"Bearer {encoded(b'{}')}.{encoded(b'null')}.",
        f"Bearer {bomb()}.{encoded(b'{}')}.",
        f"Bearer {encoded(b'{}')}.{bomb()}.",
        f"Bearer {encoded(b'1' * 5000)}.{encoded(b'{}')}.",
        f"Bearer {'.' * 8000}",
    ],
    ids=lambda header: str(header)[:30],
)
def test_missing_token_is_unauthenticated_and_repeats_nothing(
    verifier: TokenVerifier, server: CertificateServer, header: str | None
) -> None:
    with pytest.raises(UnauthenticatedError) as raised:
        verifier.verify(header)
    assert SECRET not in str(raised.value)
    assert raised.value.__cause__ is None and raised.value.__suppress_context__ in (True, False)
    assert server.fetches == 0


def test_certificates_are_fetched_once_an_hour(
    verifier: TokenVerifier, signer: Signer, server: CertificateServer, clock: Clock
) -> None:
    push = f"Bearer {signer.sign(claims())}"
    for _ in range(3):
        verifier.verify(push)
    clock.now += 3599
    verifier.verify(push)
    assert server.fetches == 1
    clock.now += 2
    verifier.verify(push)
    assert server.fetches == 2


def test_new_key_of_google_is_known_after_an_hour(
    verifier: TokenVerifier, signer: Signer, server: CertificateServer, clock: Clock
) -> None:
    verifier.verify(f"Bearer {signer.sign(claims())}")
    server.body = json.dumps({"one": signer.certificate, "two": signer.certificate}).encode()
    clock.now += 3601
    verifier.verify(f"Bearer {signer.sign(claims(), kid='two')}")
    assert server.fetches == 2


def test_tokens_that_come_at_once_become_one_fetch(
    verifier: TokenVerifier, signer: Signer, server: CertificateServer
) -> None:
    push = f"Bearer {signer.sign(claims())}"
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(verifier.verify, [push] * 32))
    assert server.fetches == 1


def test_unknown_key_ids_are_401_without_a_fetch(
    verifier: TokenVerifier, signer: Signer, server: CertificateServer, clock: Clock
) -> None:
    for number in range(20):
        clock.now += 100
        with pytest.raises(UnauthenticatedError):
            verifier.verify(f"Bearer {signer.sign(claims(), kid=f'{SECRET}{number}')}")
    assert server.fetches == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [(500, b"{}"), (404, b"{}"), (200, b"<html>"), (200, b"[]"), (200, b"{}"), (200, b"\xff")],
    ids=["500", "404", "html", "list", "none", "binary"],
)
def test_unavailable_certificates_are_transient_and_retried(
    verifier: TokenVerifier,
    signer: Signer,
    server: CertificateServer,
    clock: Clock,
    status: int,
    body: bytes,
) -> None:
    good, server.status, server.body = server.body, status, body
    push = f"Bearer {signer.sign(claims())}"
    for _ in range(5):  # at once: one fetch, not five
        with pytest.raises(CertificatesUnavailableError):
            verifier.verify(push)
    assert server.fetches == 1
    server.status, server.body = 200, good
    clock.now += 6
    verifier.verify(push)


def test_unreachable_certificates_are_transient(signer: Signer) -> None:
    verifier = TokenVerifier(AUDIENCE, (PUSHER,), certs_url="http://127.0.0.1:9/certs")
    with pytest.raises(CertificatesUnavailableError):
        verifier.verify(f"Bearer {signer.sign(claims())}")


def test_cached_key_passes_while_google_is_unavailable(
    verifier: TokenVerifier, signer: Signer, server: CertificateServer, clock: Clock
) -> None:
    verifier.verify(f"Bearer {signer.sign(claims())}")
    server.status = 500
    clock.now += 3000
    verifier.verify(f"Bearer {signer.sign(claims())}")


# Through the HTTP endpoint


@pytest.fixture
def client(verifier: TokenVerifier) -> Iterator[Any]:
    pipeline = pipeline_of(FakeStorage(), FakeStore(), FakeDetector())
    yield create_app(pipeline, max_request_bytes=1000, verify=verifier.verify).test_client()
    pipeline.close(timeout_seconds=PATIENCE_SECONDS)


JOB = {"uri": "gs://uploads/gone.jpg"}


def test_push_without_a_token_is_401(client: Any, signer: Signer) -> None:
    token = signer.sign(claims())
    assert client.post("/", json=JOB, headers={"Authorization": f"Bearer {token}"}).status == (
        "204 NO CONTENT"
    )
    response = client.post("/", json=JOB)
    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert response.get_json()["error"]["code"] == "unauthenticated"


def test_push_of_another_account_is_403_and_names_nobody(
    client: Any, signer: Signer, caplog: pytest.LogCaptureFixture
) -> None:
    token = signer.sign(claims(email=f"{SECRET}@evil.example"))
    response = client.post("/", json=JOB, headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == 403
    output = response.get_data(as_text=True) + str([vars(record) for record in caplog.records])
    assert SECRET not in output
    assert token[:40] not in output


def test_push_without_googles_certificates_is_503(
    client: Any, signer: Signer, server: CertificateServer
) -> None:
    server.status = 503
    header = {"Authorization": f"Bearer {signer.sign(claims())}"}
    response = client.post("/", json=JOB, headers=header)
    assert response.status_code == 503
    assert int(response.headers["Retry-After"]) > 0


@pytest.mark.parametrize("path", ["/", "/other", "/health/none"])
def test_every_endpoint_except_health_needs_a_token(client: Any, path: str) -> None:
    assert client.post(path, data="x" * 5000).status_code == 401
    assert client.get(path).status_code == 401


def test_health_needs_no_token(client: Any) -> None:
    assert client.get("/health/live").status_code == 200
    assert client.get("/health/ready").status_code == 200


def test_token_is_checked_only_where_an_audience_is_set() -> None:
    assert _verifier(Settings()) is None
    verify = _verifier(Settings(push_audience=AUDIENCE, push_service_accounts=(PUSHER,)))
    assert verify is not None
    with pytest.raises(UnauthenticatedError):
        verify(None)
