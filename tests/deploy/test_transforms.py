"""The functions that Pub/Sub applies to alert messages before it posts them to a webhook.

Node runs them as https://docs.cloud.google.com/pubsub/docs/smts/udfs-overview says: with a message
that has data and attributes.
"""

import json
import shutil
import subprocess
from datetime import UTC, datetime
from typing import Any

import pytest

from service.alerts.message import AlertMessage, encode
from tests.deploy.standin import MODULE

pytestmark = pytest.mark.skipif(
    not shutil.which("node"), reason="NOT CHECKED: node is not installed (https://nodejs.org)"
)
ALERT = AlertMessage(
    id="1-2",
    rule="person-at-night",
    source="gate",
    severity="critical",
    text="2 person & 1 <dog>, 22:14",
    created_at=datetime(2026, 11, 30, tzinfo=UTC),
    suppressed=3,
    console_url="https://console.cloud.google.com/firestore?a=b&c=d",
)
MAX_CODE_BYTES = 20_000  # Pub/Sub's limit


def posted(name: str, alert: AlertMessage) -> tuple[Any, dict[str, str]]:
    """Return the body and the headers of the request that posts an alert."""
    code = (MODULE / "transforms" / f"{name}.js").read_text(encoding="utf-8")
    assert len(code.encode()) < MAX_CODE_BYTES
    encoded = encode(alert)
    message = {"data": encoded.data.decode(), "attributes": dict(encoded.attributes)}
    done = subprocess.run(
        [
            "node",
            "-e",
            f"{code}\nconsole.log(JSON.stringify(transform({json.dumps(message)}, {{}})))",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    found = json.loads(done.stdout)
    return json.loads(found["data"]), found["attributes"]


def test_webhook_gets_the_alert_message_as_json() -> None:
    body, headers = posted("json", ALERT)
    assert body == json.loads(encode(ALERT).data)
    # The names of rules and sources are no headers.
    assert headers == {"Content-Type": "application/json"}


def test_slack_gets_a_text_without_markup_of_its_own() -> None:
    body, headers = posted("slack", ALERT)
    assert body == {
        "text": "critical: 2 person &amp; 1 &lt;dog&gt;, 22:14\n3 more since the last message\n"
        "https://console.cloud.google.com/firestore?a=b&amp;c=d"
    }
    assert headers == {"Content-Type": "application/json"}


def test_slack_gets_one_line_if_there_is_nothing_more_to_say() -> None:
    silence = AlertMessage(
        "3", "silent_minutes", "gate", "warning", "No image", ALERT.created_at, 0
    )
    assert posted("slack", silence)[0] == {"text": "warning: No image"}
