"""`reconcile --since gs://...`: the state of the last successful run, and results that expire."""

import json
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from click.testing import CliRunner, Result
from google.cloud import firestore_admin_v1 as admin
from google.cloud import storage
from google.cloud.firestore_admin_v1.services.firestore_admin.transports import (
    FirestoreAdminGrpcTransport,
)

from service.cli.main import main
from service.gcp import expiry
from service.gcp.expiry import UnknownExpiryError, results_ttl
from tests.fakes import PATIENCE_SECONDS


@pytest.fixture
def state() -> storage.Blob:
    """Return the object for the last run's state, which does not exist yet, in its own bucket."""
    bucket = storage.Client().create_bucket(f"state-{uuid.uuid4().hex}")
    return bucket.blob("last-run")


@pytest.fixture
def prefix(bucket: storage.Bucket) -> str:
    prefix = f"since-{uuid.uuid4().hex}/"
    bucket.blob(f"{prefix}a.jpg").upload_from_string(b"x")
    return prefix


def run(prefix: str, since: str, *options: str, exit_code: int = 0) -> Result:
    arguments = ["reconcile", f"gs://uploads/{prefix}", "--since", since, *options]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == exit_code, done.output
    return done


def uri(blob: storage.Blob) -> str:
    return f"gs://{blob.bucket.name}/{blob.name}"


def kept(state: storage.Blob) -> datetime:
    return datetime.fromisoformat(json.loads(state.download_as_bytes())["started_at"])


def test_next_run_looks_back_to_the_last_successful_one(
    state: storage.Blob, prefix: str, topic: str
) -> None:
    began = datetime.now(UTC)
    enqueue = ["--enqueue", "missing", "--yes", "--topic", topic]
    first = run(prefix, uri(state), *enqueue)
    assert "No successful run is recorded: the last two days are compared" in first.stderr
    assert "1 objects = 0 done + 0 failed + 1 missing + 0 ignored + 0 older" in first.stdout
    assert "Published 1 jobs" in first.stdout
    assert began <= kept(state) <= datetime.now(UTC)

    week_ago = began - timedelta(days=7)
    state.upload_from_string(
        json.dumps(json.loads(state.download_as_bytes()) | {"started_at": week_ago.isoformat()})
    )
    again = run(prefix, uri(state), *enqueue)
    assert f"created before {week_ago:%Y-%m-%dT%H:%M:%SZ} were not compared" in again.stdout
    assert kept(state) >= began


@pytest.mark.parametrize("options", [[], ["--enqueue", "missing", "--dry-run"]], ids=str)
def test_run_that_publishes_nothing_saves_no_state(
    options: list[str], state: storage.Blob, prefix: str
) -> None:
    run(prefix, uri(state), *options)
    assert not state.exists()


def test_failed_run_saves_no_state(state: storage.Blob, prefix: str) -> None:
    options = ["--enqueue", "missing", "--yes", "--topic", "never-made"]
    run(prefix, uri(state), *options, exit_code=1)
    assert not state.exists()


def test_run_of_another_prefix_is_refused(state: storage.Blob, prefix: str, topic: str) -> None:
    enqueue = ["--enqueue", "missing", "--yes", "--topic", topic]
    run(prefix, uri(state), *enqueue)
    refused = run("", uri(state), *enqueue, exit_code=1)
    assert "is the state of runs with another bucket, prefix or --enqueue" in refused.stderr


def test_run_that_cannot_save_its_state_fails(prefix: str, topic: str) -> None:
    enqueue = ["--enqueue", "missing", "--yes", "--topic", topic]
    refused = run(prefix, "gs://no-such-bucket/last-run", *enqueue, exit_code=1)
    assert "Cloud Storage cannot read or write gs://no-such-bucket/last-run" in refused.stderr


def test_older_objects_are_reported_and_not_compared(prefix: str) -> None:
    tomorrow = datetime.now(UTC) + timedelta(days=1)
    done = run(prefix, f"{tomorrow:%Y-%m-%dT%H:%M:%SZ}")
    assert "1 objects = 0 done + 0 failed + 0 missing + 0 ignored + 1 older" in done.stdout
    assert "were not compared. Without --since, all objects are compared." in done.stdout
    assert " 1 missing + 0 ignored + 0 older" in run(prefix, "1h").stdout


@pytest.mark.parametrize(
    "since", ["last", "2w", "gs://bucket", "gs://b/o", "gs://bucket/o#7", "999999d"]
)
def test_since_that_means_nothing_is_refused(since: str, prefix: str) -> None:
    assert "--since" in run(prefix, since, exit_code=2).stderr


# The TTL. The emulator has no admin API, so the test runs its own server.


class FakeAdmin(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Returns these fields from `ListFields`, or refuses the call."""

    def __init__(self) -> None:
        self.fields: list[admin.Field] | None = []
        self.asked: list[admin.ListFieldsRequest] = []

    def service(self, details: Any) -> Any:
        assert details.method == "/google.firestore.admin.v1.FirestoreAdmin/ListFields"

        def list_fields(request: admin.ListFieldsRequest, context: Any) -> admin.ListFieldsResponse:
            self.asked.append(request)
            if self.fields is None:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
            return admin.ListFieldsResponse(fields=self.fields)

        return grpc.unary_unary_rpc_method_handler(
            list_fields,
            request_deserializer=admin.ListFieldsRequest.deserialize,
            response_serializer=admin.ListFieldsResponse.serialize,
        )


@pytest.fixture
def fake() -> FakeAdmin:
    return FakeAdmin()


@pytest.fixture
def client(fake: FakeAdmin) -> Iterator[admin.FirestoreAdminClient]:
    server = grpc.server(ThreadPoolExecutor(1), handlers=[fake])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield admin.FirestoreAdminClient(transport=FirestoreAdminGrpcTransport(channel=channel))
    server.stop(PATIENCE_SECONDS).wait()


def ttl(days: float | None, field: str = "created_at") -> admin.Field:
    """Return a field with a TTL policy of some days. None: a policy without an offset."""
    name = f"projects/p/databases/(default)/collectionGroups/detections/fields/{field}"
    config = admin.Field.TtlConfig(state="ACTIVE")
    if days is not None:
        config.expiration_offset = timedelta(days=days)
    return admin.Field(name=name, ttl_config=config)


WEEK = [ttl(7)]


@pytest.mark.parametrize(("fields", "expected"), [([], None), (WEEK, timedelta(days=7))])
def test_ttl_is_asked_of_the_results_collection(
    client: admin.FirestoreAdminClient,
    fake: FakeAdmin,
    fields: list[admin.Field],
    expected: timedelta | None,
) -> None:
    fake.fields = fields
    assert results_ttl(client, "p", "(default)", "detections") == expected
    [request] = fake.asked
    assert request.parent == "projects/p/databases/(default)/collectionGroups/detections"
    assert request.filter == "ttlConfig:*"


@pytest.mark.parametrize(
    "fields",
    [None, [ttl(None)], [ttl(7, "event_time")], [ttl(7), ttl(7, "expires_at")]],
    ids=["refused", "no-offset", "other-field", "two"],
)
def test_ttl_that_is_not_known_is_not_guessed(
    client: admin.FirestoreAdminClient, fake: FakeAdmin, fields: list[admin.Field] | None
) -> None:
    fake.fields = fields
    with pytest.raises(UnknownExpiryError):
        results_ttl(client, "p", "(default)", "detections")


def reconciled(
    prefix: str,
    *options: str,
    client: admin.FirestoreAdminClient,
    monkeypatch: pytest.MonkeyPatch,
) -> Result:
    monkeypatch.setattr(expiry, "connect", lambda: client)
    done = CliRunner().invoke(main, ["reconcile", f"gs://uploads/{prefix}", *options])
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize("all_objects", [True, False], ids=["all", "since-last-year"])
def test_expired_result_is_not_processed_again(
    client: admin.FirestoreAdminClient,
    fake: FakeAdmin,
    state: storage.Blob,
    prefix: str,
    topic: str,
    all_objects: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The object has no document. Results have a lifetime of 36 s, less than the margin of 1 h."""
    fake.fields = [ttl(0.01 / 24)]
    options = ["--enqueue", "missing", "--yes", "--topic", topic]
    if not all_objects:
        run(prefix, uri(state), *options)
        year_ago = datetime.now(UTC) - timedelta(days=365)
        state.upload_from_string(
            json.dumps(json.loads(state.download_as_bytes()) | {"started_at": year_ago.isoformat()})
        )
        options += ["--since", uri(state)]
    done = reconciled(prefix, *options, client=client, monkeypatch=monkeypatch)
    assert "1 objects = 0 done + 0 failed + 0 missing + 0 ignored + 1 older" in done.stdout
    assert "Published 0 jobs" in done.stdout


@pytest.mark.parametrize(
    ("options", "fields", "sentence"),
    [
        (["--enqueue", "missing"], WEEK, "Results expire after 7 days, so older objects are not"),
        (["--enqueue", "missing", "--since", "2d"], WEEK, "Results expire after 7 days"),
        (["--enqueue", "missing"], None, "Warning: results may expire (Firestore did not report"),
        (["--enqueue", "missing"], [], None),
        (["--enqueue", "failed"], WEEK, None),
    ],
    ids=["expire", "by-age", "unknown", "stay", "not-missing"],
)
def test_comparison_says_whether_results_expire(
    client: admin.FirestoreAdminClient,
    fake: FakeAdmin,
    prefix: str,
    options: list[str],
    fields: list[admin.Field] | None,
    sentence: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake.fields = fields
    done = reconciled(prefix, *options, "--dry-run", client=client, monkeypatch=monkeypatch)
    assert (sentence in done.stderr) if sentence else ("expire" not in done.stderr)
    assert "1 missing" in done.stdout or "failed" in options
