"""Google's metrics that the dashboard and the alerts use, as Google describes them.

https://cloud.google.com/monitoring/api/metrics_gcp has each metric's kind, type and labels, and
https://cloud.google.com/monitoring/api/resources has the labels of a monitored resource. The list
is of November 2026.
"""

from dataclasses import dataclass, field
from typing import Literal

# The labels of a monitored resource, as far as filters use them.
RESOURCES: dict[str, frozenset[str]] = {
    "cloud_run_job": frozenset({"project_id", "job_name", "location"}),
    "cloud_run_revision": frozenset(
        {"project_id", "service_name", "revision_name", "location", "configuration_name"}
    ),
    "pubsub_subscription": frozenset({"project_id", "subscription_id"}),
}


@dataclass(frozen=True)
class Descriptor:
    """A metric: its kind, the type of its values, its resource, and its own labels."""

    kind: Literal["GAUGE", "DELTA"]
    value: Literal["INT64", "DOUBLE", "BOOL", "DISTRIBUTION"]
    resource: str
    labels: frozenset[str] = field(default_factory=frozenset)

    @property
    def all_labels(self) -> frozenset[str]:
        """Its own labels and those of its resource."""
        return self.labels | RESOURCES[self.resource]


METRICS = {
    "logging.googleapis.com/byte_count": Descriptor(
        "DELTA", "INT64", "cloud_run_revision", frozenset({"log", "severity"})
    ),
    "pubsub.googleapis.com/subscription/num_undelivered_messages": Descriptor(
        "GAUGE", "INT64", "pubsub_subscription"
    ),
    "pubsub.googleapis.com/subscription/oldest_unacked_message_age": Descriptor(
        "GAUGE", "INT64", "pubsub_subscription"
    ),
    "pubsub.googleapis.com/subscription/push_request_count": Descriptor(
        "DELTA",
        "INT64",
        "pubsub_subscription",
        frozenset({"response_class", "response_code", "delivery_type"}),
    ),
    "run.googleapis.com/container/completed_probe_count": Descriptor(
        "DELTA",
        "INT64",
        "cloud_run_revision",
        frozenset({"container_name", "is_default", "is_healthy", "probe_action", "probe_type"}),
    ),
    "run.googleapis.com/container/instance_count": Descriptor(
        "GAUGE", "INT64", "cloud_run_revision", frozenset({"state"})
    ),
    "run.googleapis.com/job/completed_execution_count": Descriptor(
        "DELTA", "INT64", "cloud_run_job", frozenset({"result"})
    ),
    "run.googleapis.com/request_count": Descriptor(
        "DELTA",
        "INT64",
        "cloud_run_revision",
        frozenset({"response_code", "response_code_class"}),
    ),
    "run.googleapis.com/request_latencies": Descriptor(
        "DELTA",
        "DISTRIBUTION",
        "cloud_run_revision",
        frozenset({"response_code", "response_code_class"}),
    ),
}

# `response_class` of push_request_count.
RESPONSE_CLASSES = frozenset(
    {
        "ack",
        "deadline_exceeded",
        "internal",
        "invalid",
        "remote_server_4xx",
        "remote_server_5xx",
        "unreachable",
    }
)
