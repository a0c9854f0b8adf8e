"""The simplest alternative: a Flask handler that predicts one picture per request.

gunicorn --workers 1 --threads 8 --timeout 0 benchmarks.naive_service:app, with WEIGHTS=yolo26n.pt.
"""

import os

import cv2
import numpy as np
from flask import Flask, request
from ultralytics import YOLO

app = Flask(__name__)
model = YOLO(os.environ["WEIGHTS"])
model.predict(np.full((640, 640, 3), 114, np.uint8), verbose=False)  # as our own warm-up


@app.get("/health/ready")
def ready() -> str:
    return "ready"


@app.post("/")
def predict() -> list[dict[str, object]]:
    image = cv2.imdecode(np.frombuffer(request.get_data(), np.uint8), cv2.IMREAD_COLOR)
    result = model.predict(image, verbose=False)[0]
    return [dict(found) for found in result.summary()]
