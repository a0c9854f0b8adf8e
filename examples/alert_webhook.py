"""Receive alerts from a push subscription. Print each alert once, and forward it to a chat.

    python alert_webhook.py --port 8081
    FORWARD_URL=https://chat.example/hook python alert_webhook.py --port 8081

Each request is one alert message, as Pub/Sub pushes it: the alert's JSON, or that JSON in the
envelope that Pub/Sub adds unless the subscription has `no_wrapper`. Pub/Sub may push an alert
twice, always with the same id, so an id that was handled before is only acknowledged. If the
chat does not accept an alert, the response is 502, and Pub/Sub pushes the alert again.

It does not check who sends a request. On Cloud Run, let only the subscription's service account
invoke it (`roles/run.invoker`). Elsewhere, put a secret into the path of its address.

FORWARD_URL is a webhook that takes `{"text": ...}`, for example of Slack or Google Chat. It is a
secret, so it is an environment variable. Needs `pip install flask`.
"""

import argparse
import base64
import html
import json
import os
import urllib.request
from collections import OrderedDict
from typing import Any

from flask import Flask, request

FORWARD_SECONDS = 10
MAX_IDS = 10_000  # handled alerts that are remembered

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 2**20
handled: OrderedDict[str, None] = OrderedDict()


def alert_of(body: bytes) -> dict[str, Any]:
    """Return the alert of a request. Raise ValueError, KeyError or TypeError if it has none."""
    found: dict[str, Any] = json.loads(body)
    if "message" in found:
        found = json.loads(base64.b64decode(found["message"]["data"]))
    if not isinstance(found["id"], str):
        raise TypeError("the alert's id is not a text")
    return found


def forward(alert: dict[str, Any], url: str) -> None:
    """Post an alert to a chat. Raise OSError if the chat does not accept it."""
    text = f"{alert['severity'].upper()}: {alert['text']}"
    text = html.escape(text, quote=False)  # a label must not become a link or a mention
    headers = {"Content-Type": "application/json"}
    message = urllib.request.Request(url, json.dumps({"text": text}).encode(), headers)
    with urllib.request.urlopen(message, timeout=FORWARD_SECONDS):
        pass


@app.post("/")
def receive() -> tuple[str, int]:
    """Handle one push."""
    try:
        alert = alert_of(request.get_data())
    except (ValueError, KeyError, TypeError) as error:
        return f"This is not an alert: {error!r}", 400
    if alert["id"] in handled:
        return "", 204
    if url := os.environ.get("FORWARD_URL"):
        try:
            forward(alert, url)
        except OSError as error:
            print(f"Alert {alert['id']} was not forwarded: {error}", flush=True)
            return "The alert was not forwarded", 502
    print(json.dumps(alert), flush=True)
    handled[alert["id"]] = None
    while len(handled) > MAX_IDS:
        handled.popitem(last=False)
    return "", 204


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print and forward alerts.")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container")
    parser.add_argument("--port", type=int, default=8081)
    options = parser.parse_args()
    app.run(options.host, options.port, threaded=False)  # one at a time, so no alert twice
