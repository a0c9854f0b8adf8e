"""Identify the model at a path without loading it."""

import hashlib
from pathlib import Path

import yaml

from service.errors import ModelError
from service.inference.detector import OPENVINO_METADATA


def sha256_of_model(path: Path) -> str:
    """Return the SHA-256 by which documents identify the model, equal to `Detector.info.sha256`.

    Raises:
        ModelError: the model does not exist or cannot be read.
    """
    metadata = path / OPENVINO_METADATA
    try:
        if metadata.is_file():
            recorded = (yaml.safe_load(metadata.read_text(encoding="utf-8")) or {}).get("sha256")
            return str(recorded or _sha256(sorted(path.glob("*.bin"))))
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        return _sha256([file for file in files if file.is_file()] or [path])
    except (OSError, yaml.YAMLError, AttributeError, ValueError, RecursionError) as exc:
        raise ModelError(f"The model {path} cannot be read: {exc}") from exc


def _sha256(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
