"""examples/alert_webhook.py as the target of the Pub/Sub emulator's push."""

import json
import os
import sys
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import requests
from google.cloud import pubsub_v1  # type: ignore[attr-defined]  # published without types

from devtools.local_stack.processes import Child, Processes, free_port
from tests.fakes import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.emulator

EXAMPLE = Path(__file__).parents[2] / "examples" / "alert_webhook.py"


class Chat:
    """A chat's webhook. It refuses the first messages."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.texts: list[str] = []
        chat = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                is_refused = chat.refusals > 0
                chat.refusals -= is_refused
                if not is_refused:
                    chat.texts.append(json.loads(body)["text"])
                self.send_response(500 if is_refused else 200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def chat() -> Iterator[Chat]:
    chat = Chat(refusals=1)
    yield chat
    chat.server.shutdown()
    chat.server.server_close()


class Webhook:
    """The example, running."""

    def __init__(self, processes: Processes, forward_url: str = "") -> None:
        port = free_port()
        environment = {**os.environ, "FORWARD_URL": forward_url, "NO_PROXY": "127.0.0.1"}
        command: list[str | Path] = [sys.executable, EXAMPLE, "--port", str(port)]
        self.url = f"http://127.0.0.1:{port}/"
        self.child: Child = processes.start("webhook", command, environment)
        self.child.wait_until(self._is_listening, timeout_seconds=PATIENCE_SECONDS)

    def _is_listening(self) -> bool:
        try:
            return requests.get(self.url, timeout=PATIENCE_SECONDS).status_code == 405
        except requests.ConnectionError:
            return False

    def post(self, body: object) -> int:
        """Push a body. Return the status of the response."""
        return requests.post(self.url, json=body, timeout=PATIENCE_SECONDS).status_code

    @property
    def printed(self) -> list[str]:
        """The ids of the alerts that it has printed."""
        lines = self.child.log_text().splitlines()
        return [json.loads(line)["id"] for line in lines if line.startswith("{")]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as processes:
        yield processes


def alert(name: str) -> dict[str, str]:
    return {"id": name, "severity": "critical", "text": f"2 <!channel> in zone gate, {name}"}


@pytest.mark.parametrize("is_wrapped", [True, False])
def test_webhook_prints_each_pushed_alert_once(
    is_wrapped: bool, processes: Processes, publisher: pubsub_v1.PublisherClient, project: str
) -> None:
    webhook = Webhook(processes)
    topic = publisher.topic_path(project, f"alerts-{uuid.uuid4().hex}")
    publisher.create_topic(name=topic)
    push: dict[str, object] = {"push_endpoint": webhook.url}
    if not is_wrapped:
        push["no_wrapper"] = {"write_metadata": False}
    with pubsub_v1.SubscriberClient() as subscriber:
        name = subscriber.subscription_path(project, topic.rpartition("/")[2])
        subscriber.create_subscription(request={"name": name, "topic": topic, "push_config": push})
    for each in ("a", "b", "a", "c"):
        publisher.publish(topic, json.dumps(alert(each)).encode()).result(PATIENCE_SECONDS)
    wait_until(lambda: len(webhook.printed) >= 3, webhook.child.failure("printed too little"))
    assert sorted(webhook.printed) == ["a", "b", "c"]


def test_alert_that_the_chat_refused_is_forwarded_later(processes: Processes, chat: Chat) -> None:
    webhook = Webhook(processes, chat.url)
    assert [webhook.post(alert("a")) for _ in range(3)] == [502, 204, 204]
    assert chat.texts == ["CRITICAL: 2 &lt;!channel&gt; in zone gate, a"]
    assert webhook.printed == ["a"]


@pytest.mark.parametrize(
    "body", [{}, [], "text", {"message": {}}, {"message": {"data": "bm8="}}, {"id": 5}]
)
def test_body_without_an_alert_is_refused(processes: Processes, body: object) -> None:
    webhook = Webhook(processes)
    assert webhook.post(body) == 400
    assert webhook.printed == []
