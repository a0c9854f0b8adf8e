"""The simplest alternative: a Flask handler that predicts one image per request.

WEIGHTS=yolo26n.pt gunicorn --workers 1 --threads 16 --timeout 0 \
  "devtools.bench.naive_service:build_app()"

The request's body is the image. The response has its detections.
"""

import os
from pathlib import Path

import cv2
import numpy as np
from flask import Flask, request

from devtools.bench.worker import load_yolo, use_own_cores


def build_app() -> Flask:
    """Load the model, warm it up as the service does, and serve."""
    app = Flask(__name__)
    model = load_yolo(Path(os.environ["WEIGHTS"]))
    model.predict(np.full((640, 640, 3), 114, np.uint8), verbose=False)
    use_own_cores()

    @app.get("/health/ready")
    def ready() -> str:
        return "ready"

    @app.post("/")
    def predict() -> list[dict[str, object]]:
        image = cv2.imdecode(np.frombuffer(request.get_data(), np.uint8), cv2.IMREAD_COLOR)
        result = model.predict(image, verbose=False)[0]
        return [dict(detection) for detection in result.summary()]

    return app
