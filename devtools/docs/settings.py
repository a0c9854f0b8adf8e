"""The reference of the settings by purpose, from `service.settings`."""

from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from devtools.docs.markdown import code, table
from service.settings import BUNDLED_MODEL, Settings

# Purposes and their settings. Every setting is in exactly one group. `render` checks it.
GROUPS = {
    "Server": ("bind_address", "port", "endpoints", "max_request_bytes", "log_level"),
    "Model": (
        "model_path",
        "device",
        "inference_streams",
        "image_size",
        "min_confidence",
        "store_confidence",
        "max_batch_size",
        "max_batch_pixels",
    ),
    "Images and memory": (
        "max_in_flight",
        "max_image_bytes",
        "max_image_pixels",
        "max_buffered_bytes",
        "decoders",
        "reduced_decode",
    ),
    "Cost": ("daily_image_limit",),
    "Deletion": ("delete_results_with_objects", "delete_results_of_overwritten"),
    "Access": ("allowed_buckets", "push_audience", "push_service_accounts"),
    "Google Cloud": (
        "google_cloud_project",
        "firestore_database",
        "firestore_collection",
        "results_bucket",
        "results_topic",
        "alerts_topic",
    ),
    "Time limits": (
        "ack_deadline_seconds",
        "detect_timeout_seconds",
        "storage_timeout_seconds",
        "firestore_timeout_seconds",
        "sources_refresh_seconds",
        "hang_timeout_seconds",
        "graceful_timeout_seconds",
    ),
}
_UNITS = ("bytes", "pixels", "seconds")
_PROBES = (
    "\0",
    "/",
    "50",
)  # parsers reject these values, and their messages state what is allowed


def render() -> str:
    """Return a heading and a table for each purpose.

    Raises:
        ValueError: a setting is in no group, or a group has a setting that does not exist.
    """
    specs = {spec.name: spec for spec in fields(Settings)}
    grouped = [name for names in GROUPS.values() for name in names]
    if sorted(grouped) != sorted(specs):
        raise ValueError(f"devtools/docs/settings.py: GROUPS {set(grouped) ^ set(specs)}")
    parts = []
    for group, names in GROUPS.items():
        rows = [_row(specs[name]) for name in names]
        headers = ("variable", "default", "unit", "allowed", "meaning")
        parts.append(f"## {group}\n\n{table(headers, rows)}")
    return "\n\n".join(parts)


def defaults() -> dict[str, str]:
    """Return each variable's default as the pages write it."""
    return {spec.name.upper(): _default(spec.default) for spec in fields(Settings)}


def allowed(parse: Callable[[str], Any]) -> str:
    """Return what a setting's parser accepts, from its own error message."""
    demands: list[str] = []
    for probe in _PROBES:
        try:
            parse(probe)
        except ValueError as exc:
            demands.append(str(exc))
    if demands:
        return "; ".join(dict.fromkeys(demands))
    return "a path" if parse is Path else "text"


def _row(spec: "Field[Any]") -> tuple[str, ...]:
    unit = next((unit for unit in _UNITS if spec.name.endswith(f"_{unit}")), "")
    meaning = spec.metadata["help"]
    return (
        code(spec.name.upper()),
        _default(spec.default),
        "pixels" if spec.name == "image_size" else unit,
        allowed(spec.metadata["parse"]),
        meaning,
    )


def _default(value: Any) -> str:
    if value is None or value == ():
        return "unset"
    if value == BUNDLED_MODEL:
        return "the bundled demo model"
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, float):
        return code(f"{value:g}")
    return code(value)
