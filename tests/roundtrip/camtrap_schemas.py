"""The table schemas of Camtrap DP 1.0.2, as far as an export fills or could break them.

Written from the standard: https://camtrap-dp.tdwg.org/data
"""

from typing import Any

from service.result_exports.camtrap_dp import TABLES

_TIME = {"type": "datetime", "format": "%Y-%m-%dT%H:%M:%S%z"}
_TIMES = """
    deploymentStart deploymentEnd timestamp eventStart eventEnd classificationTimestamp
"""
_REQUIRED = {
    "deployments": {
        "deploymentID", "latitude", "longitude", "deploymentStart", "deploymentEnd",
    },
    "media": {
        "mediaID", "deploymentID", "timestamp", "filePath", "filePublic", "fileMediatype",
    },
    "observations": {
        "observationID", "deploymentID", "eventStart", "eventEnd", "observationLevel",
        "observationType",
    },
}  # fmt: skip
_UNIQUE = {"deployments": "deploymentID", "media": "mediaID", "observations": "observationID"}
_TYPES: dict[str, dict[str, Any]] = {
    "latitude": {"type": "number", "constraints": {"minimum": -90, "maximum": 90}},
    "longitude": {"type": "number", "constraints": {"minimum": -180, "maximum": 180}},
    "coordinateUncertainty": {"type": "integer", "constraints": {"minimum": 1}},
    "filePublic": {"type": "boolean"},
    "filePath": {"type": "string", "constraints": {"pattern": r"^(?=^[^./~])(^((?!\.{2}).)*$).*$"}},
    "fileMediatype": {"type": "string", "constraints": {"pattern": "^(image|video|audio)/.*$"}},
    "observationLevel": {"type": "string", "constraints": {"enum": ["media", "event"]}},
    "observationType": {
        "type": "string",
        "constraints": {
            "enum": ["animal", "human", "vehicle", "blank", "unknown", "unclassified"],
        },
    },
    "count": {"type": "integer", "constraints": {"minimum": 1}},
    "bboxX": {"type": "number", "constraints": {"minimum": 0, "maximum": 1}},
    "bboxY": {"type": "number", "constraints": {"minimum": 0, "maximum": 1}},
    "bboxWidth": {"type": "number", "constraints": {"minimum": 1e-15, "maximum": 1}},
    "bboxHeight": {"type": "number", "constraints": {"minimum": 1e-15, "maximum": 1}},
    "classificationMethod": {"type": "string", "constraints": {"enum": ["human", "machine"]}},
    "classificationProbability": {"type": "number", "constraints": {"minimum": 0, "maximum": 1}},
    **dict.fromkeys(_TIMES.split(), _TIME),
}  # fmt: skip
_PARENTS = {
    "deployments": {},
    "media": {"deploymentID": "deployments"},
    "observations": {"deploymentID": "deployments", "mediaID": "media"},
}


def schemas() -> dict[str, Any]:
    return {table: _schema(table) for table in TABLES}


def _schema(table: str) -> dict[str, Any]:
    return {
        "fields": [_field(table, name) for name in TABLES[table]],
        "missingValues": [""],
        "primaryKey": _UNIQUE[table],
        "foreignKeys": [
            {"fields": [name], "reference": {"resource": parent, "fields": [name]}}
            for name, parent in _PARENTS[table].items()
        ],
    }


def _field(table: str, name: str) -> dict[str, Any]:
    spec = _TYPES.get(name, {"type": "string"})
    constraints = dict(spec.get("constraints", {})) | {"required": name in _REQUIRED[table]}
    return {"name": name} | spec | {"constraints": constraints}
