"""What each change of a variable does to a deployment. To print it as a Markdown table:

    python -m tests.deploy.changes

Terraform plans every change against a fake of the google provider, in about a minute.
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devtools.docs.markdown import code, table
from tests.deploy.standin import STANDIN, matrix

_GPU = {"accelerator": "nvidia-l4"}
# One start for many changes, because each start is an apply.
OTHER = _GPU | {
    "alert_incidents": True,
    "alert_webhook_audience": "https://alerts.example.com",
    "alert_webhook_url": "https://alerts.example.com/a",
    "alerts_topic": True,
    "bigquery": True,
    "delete_results_with_objects": True,
    "detect_invokers": ["group:a@example.com"],
    "detect_max_instances": 1,
    "detect_min_instances": 1,
    "detect_service": True,
    "gallery": True,
    "gallery_originals": True,
    "gallery_try_again": True,
    "gallery_viewers": ["group:a@example.com"],
    "indexed_fields": ["model.name"],
    "results_bucket": True,
    "results_topic": True,
    "results_ttl_days": 30,
    "upload_events": "both",
}
_EVENTARC = frozenset(
    {
        "google_eventarc_trigger.uploads",
        "google_project_iam_member.event_receiver",
        "terraform_data.agent_grants",
        "terraform_data.tuned_subscription",
    }
)
_TOPIC = frozenset(
    {
        "google_pubsub_subscription.uploads",
        "google_pubsub_subscription_iam_member.uploads",
        "google_pubsub_topic.uploads",
        "google_pubsub_topic_iam_member.storage_agent",
        "google_storage_notification.uploads",
    }
)


def _undelivered(*names: str) -> frozenset[str]:
    """Return the warnings about subscriptions that are destroyed."""
    return frozenset(
        f"google_pubsub_subscription.{name} is destroyed, with its undelivered messages"
        for name in names
    )


_MESSAGES_LOST = _undelivered('uploads["deletes"]', 'uploads["uploads"]')
_WAIT = frozenset({"time_sleep.agent_grants"})  # destroying a wait has no effect
_FIELDS = frozenset(
    {
        "google_firestore_field.alerts",
        "google_firestore_field.created_at",
        "google_firestore_field.expiring",
        "google_firestore_field.indexed",
        "google_firestore_field.others",
    }
)
_SERVICE_AND_CALLERS = frozenset(
    {
        "google_cloud_run_v2_service.main",
        "google_cloud_run_v2_service_iam_member.build",
        "google_cloud_run_v2_service_iam_member.events",
        "terraform_data.first_image",
        "time_sleep.callers",
    }
)
_DETECT = frozenset(
    {
        "google_cloud_run_v2_service.detect",
        "google_cloud_run_v2_service_iam_member.build_detect",
        "google_cloud_run_v2_service_iam_member.detect",
    }
)
_DETECT_ALONE = frozenset(
    {
        "google_monitoring_alert_policy.detect",
        "google_project_iam_member.detect",
        "google_pubsub_topic_iam_member.detect",
        "google_service_account.detect",
        "google_service_account_iam_member.build",
        "google_storage_bucket_iam_member.detect",
        "google_storage_bucket_iam_member.detect_results",
        "time_sleep.detect",
    }
)
_GALLERY = frozenset(
    {
        "google_cloud_run_v2_service.gallery",
        "google_cloud_run_v2_service_iam_member.build_gallery",
        "google_cloud_run_v2_service_iam_member.gallery",
        "google_firestore_database.verdicts",
        "google_iap_web_cloud_run_service_iam_member.gallery",
        "google_project_iam_member.gallery",
        "google_project_iam_member.gallery_verdicts",
        "google_project_service.iap",
        "google_project_service_identity.iap",
        "google_pubsub_topic_iam_member.gallery",
        "google_service_account.gallery",
        "google_service_account_iam_member.build",
        "google_storage_bucket_iam_member.gallery_originals",
        "google_storage_bucket_iam_member.gallery_results",
        "terraform_data.verdicts",
        "time_sleep.gallery",
        "time_sleep.iap",
    }
)
_BIGQUERY = frozenset(
    {
        "google_bigquery_dataset.results",
        "google_bigquery_table.detections",
        "google_bigquery_table.messages",
        "google_bigquery_table.results",
        "google_bigquery_table_iam_member.pubsub",
        "google_project_service.bigquery",
        "google_pubsub_subscription.bigquery",
        "google_pubsub_subscription.undelivered",
        "google_pubsub_subscription_iam_member.delivered",
        "google_pubsub_topic.undelivered",
        "google_pubsub_topic_iam_member.undelivered",
        "terraform_data.rows",
        "time_sleep.bigquery",
        "time_sleep.bigquery_grant",
    }
)
_WEBHOOK = frozenset(
    {
        "google_pubsub_subscription.undelivered",
        "google_pubsub_subscription.webhook",
        "google_pubsub_subscription_iam_member.delivered",
        "google_pubsub_topic.undelivered",
        "google_pubsub_topic_iam_member.undelivered",
    }
)


@dataclass(frozen=True)
class Change:
    """A change of variables, and what it may replace and destroy. Everything else is updated."""

    set: dict[str, Any]
    start: dict[str, Any] = field(default_factory=dict)  # on top of the required variables
    replaces: frozenset[str] = frozenset()  # the new one is created first
    interrupts: frozenset[str] = frozenset()  # replaces, and destroys the old one first
    destroys: frozenset[str] = frozenset()
    warnings: frozenset[str] = frozenset()
    refused: str = ""  # part of the error that stops the plan

    @property
    def is_in_place(self) -> bool:
        """Whether it replaces and destroys nothing, and starts from the defaults."""
        return self == Change(self.set)

    @property
    def only_destroys(self) -> bool:
        """Whether it replaces nothing, and destroys something."""
        return bool(self.destroys) and self == Change(self.set, self.start, destroys=self.destroys)


@dataclass(frozen=True)
class Effect:
    """What a plan does, by action: addresses without the module and the index, and their number."""

    actions: dict[str, Counter[str]]
    warnings: frozenset[str]
    refused: str

    @classmethod
    def of(cls, report: dict[str, Any]) -> "Effect":
        """Read a report of `matrix`."""
        actions: dict[str, Counter[str]] = {}
        for each in report["actions"]:
            address = re.sub(r"\[.*", "", _in_module(each["address"]))
            actions.setdefault(each["action"], Counter())[address] += 1
        warnings = frozenset(map(_in_module, report["warnings"]))
        return cls(actions, warnings, " ".join(report["refused"].split()))

    def addresses(self, action: str) -> frozenset[str]:
        """Return the addresses of an action."""
        return frozenset(self.actions.get(action, ()))


CHANGES: dict[str, Change] = {
    'accelerator = "nvidia-l4"': Change(_GPU, replaces=_SERVICE_AND_CALLERS),
    'accelerator = "none", from "nvidia-l4"': Change(
        {"accelerator": "none"}, OTHER, replaces=_SERVICE_AND_CALLERS | _DETECT
    ),
    'accelerator = "nvidia-rtx-pro-6000", from "nvidia-l4"': Change(
        {"accelerator": "nvidia-rtx-pro-6000"}, OTHER, replaces=_SERVICE_AND_CALLERS | _DETECT
    ),
    'agent_grants = "none"': Change(
        {"agent_grants": "none"},
        interrupts=_WAIT,
        destroys=frozenset({"terraform_data.agent_grants"}),
    ),
    "alert_incidents = true": Change({"alert_incidents": True}),
    "alert_incidents = false, from true": Change(
        {"alert_incidents": False},
        OTHER,
        destroys=frozenset({"google_monitoring_alert_policy.source"}),
    ),
    'alert_webhook_audience = "https://..."': Change(
        {"alert_webhook_audience": "https://alerts.example.com"},
        {"alerts_topic": True, "alert_webhook_url": "https://alerts.example.com/a"},
    ),
    'alert_webhook_transform = "slack", with a webhook': Change(
        {"alert_webhook_transform": "slack"},
        {"alerts_topic": True, "alert_webhook_url": "https://alerts.example.com/a"},
    ),
    'alert_webhook_url = "https://..."': Change(
        {"alerts_topic": True, "alert_webhook_url": "https://alerts.example.com/a"},
        interrupts=_WAIT,
    ),
    "alert_webhook_url = null, from an address": Change(
        {"alert_webhook_url": None, "alert_webhook_audience": None},
        OTHER,
        destroys=_WEBHOOK
        | {"google_service_account.alerts", "google_service_account_iam_member.alerts"},
        warnings=_undelivered("webhook[0]", 'undelivered["alerts"]'),
    ),
    "alerts_topic = true": Change({"alerts_topic": True}, interrupts=_WAIT),
    "batch_size = 4": Change({"batch_size": 4}),
    "bigquery = true": Change({"bigquery": True, "results_topic": True}, interrupts=_WAIT),
    # The apply fails before it destroys anything, because protect_data is true.
    "bigquery = false, from true": Change(
        {"bigquery": False},
        OTHER,
        destroys=_BIGQUERY,
        warnings=_undelivered("bigquery[0]", 'undelivered["results"]')
        | {
            "google_bigquery_dataset.results[0] is destroyed, with its tables",
            *(
                f"google_bigquery_table.{name}[0] is destroyed, with its rows"
                for name in ("detections", "messages", "results")
            ),
        },
    ),
    'bucket_name = "other"': Change(
        {"bucket_name": "other"}, refused="bucket_name is my-project-1-yolo-batch-uploads"
    ),
    "budget = {...}": Change(
        {"budget": {"billing_account": "012345-6789AB-CDEF01", "amount": 100}}
    ),
    'build_region = "us-central1"': Change({"build_region": "us-central1"}),
    'calibration = "models/calibration"': Change({"calibration": "models/calibration"}),
    "cpu = 1": Change({"cpu": 1}),
    "create_bucket = false": Change(
        {"create_bucket": False, "bucket_name": "other"},
        refused="create_bucket is true",
    ),
    "create_database = false": Change(
        {"create_database": False}, refused="create_database is true"
    ),
    "create_repository = false": Change(
        {"create_repository": False, "repository_name": "images"},
        refused="create_repository is true",
    ),
    "daily_image_limit = 10000": Change({"daily_image_limit": 10000}),
    "delete_results_with_objects = true": Change({"delete_results_with_objects": True}),
    "delete_results_with_objects = false, from true": Change(
        {"delete_results_with_objects": False},
        OTHER,
        interrupts=_WAIT,
        destroys=_TOPIC | {"google_eventarc_trigger.uploads", "terraform_data.tuned_subscription"},
        warnings=frozenset(text for text in _MESSAGES_LOST if "deletes" in text),
    ),
    "detect_invokers = [...]": Change(
        {"detect_service": True, "detect_invokers": ["group:a@example.com"]}
    ),
    "detect_max_instances = 5": Change({"detect_service": True, "detect_max_instances": 5}),
    "detect_min_instances = 1": Change({"detect_service": True, "detect_min_instances": 1}),
    "detect_service = true": Change({"detect_service": True}),
    "detect_service = false, from true": Change(
        {"detect_service": False, "detect_invokers": [], "detect_min_instances": 0},
        OTHER,
        destroys=_DETECT | _DETECT_ALONE,
    ),
    'firestore_collection = "other"': Change(
        {"firestore_collection": "other"},
        interrupts=_FIELDS | {"google_firestore_index.alerts", "google_firestore_index.main"},
    ),
    'firestore_database = "other"': Change(
        {"firestore_database": "other"}, refused="firestore_database is (default)"
    ),
    'firestore_location = "eur3"': Change(
        {"firestore_location": "eur3"}, refused="firestore_location is europe-west1"
    ),
    "gallery = true": Change({"gallery": True, "gallery_originals": True}),
    "gallery = false, from true": Change(
        {
            "gallery": False,
            "gallery_originals": False,
            "gallery_try_again": False,
            "gallery_viewers": [],
        },
        OTHER,
        destroys=_GALLERY,
        # terraform_data.verdicts fails first, because protect_data is true.
        warnings=frozenset(
            {"google_firestore_database.verdicts[0] is destroyed, with its documents"}
        ),
    ),
    "gallery_originals = true": Change({"gallery": True, "gallery_originals": True}),
    "gallery_try_again = true": Change(
        {"gallery": True, "gallery_originals": True, "gallery_try_again": True}
    ),
    "gallery_viewers = [...]": Change(
        {"gallery": True, "gallery_originals": True, "gallery_viewers": ["group:a@example.com"]}
    ),
    'image = "REGION-docker.pkg.dev/..."': Change(
        {"image": "europe-west1-docker.pkg.dev/my-project-1/yolo-batch/service:latest"},
        destroys=frozenset({"terraform_data.first_image"}),
    ),
    "index_all_fields = true": Change({"index_all_fields": True}),
    "indexed_fields = [...]": Change({"indexed_fields": ["model.name"]}),
    "indexed_fields = [], from [...]": Change(
        {"indexed_fields": []}, OTHER, destroys=frozenset({"google_firestore_field.indexed"})
    ),
    "keep_request_logs = true": Change(
        {"keep_request_logs": True},
        destroys=frozenset({"google_logging_project_exclusion.requests"}),
    ),
    'kms_key = "projects/..."': Change(
        {"kms_key": "projects/p/locations/europe-west1/keyRings/r/cryptoKeys/k"},
        refused="kms_key is none",
    ),
    "labels = {...}": Change({"labels": {"team": "vision"}}),
    "max_instances = 5": Change({"max_instances": 5}),
    "min_instances = 1": Change({"min_instances": 1}),
    'model = "yolo26s.pt"': Change({"model": "yolo26s.pt"}),
    'name = "other-batch"': Change({"name": "other-batch"}, refused="name is yolo-batch"),
    "notification_channels = [...]": Change(
        {"notification_channels": ["projects/my-project-1/notificationChannels/1"]}
    ),
    'object_prefix = "cam/", with notifications': Change(
        {"object_prefix": "cam/"},
        {"upload_events": "notification"},
        interrupts=frozenset({"google_storage_notification.uploads"}),
    ),
    'project_id = "my-project-2"': Change(
        {"project_id": "my-project-2"}, refused="project_id is my-project-1"
    ),
    "protect_data = false": Change({"protect_data": False}),
    "reconcile_schedule = null": Change(
        {"reconcile_schedule": None}, destroys=frozenset({"google_cloud_scheduler_job.reconcile"})
    ),
    'region = "europe-west4"': Change({"region": "europe-west4"}, refused="region is europe-west1"),
    'repository_name = "other"': Change(
        {"repository_name": "other"}, refused="repository_name is yolo-batch"
    ),
    "results_bucket = true": Change({"results_bucket": True}, interrupts=_WAIT),
    "results_bucket = false, from true": Change(
        {"results_bucket": False},
        OTHER,
        interrupts=_WAIT,
        destroys=frozenset(
            {
                "google_storage_bucket.results",
                "google_storage_bucket_iam_member.detect_results",
                "google_storage_bucket_iam_member.gallery_results",
                "google_storage_bucket_iam_member.results",
            }
        ),
        # The destroy fails while the bucket has objects, because protect_data is true.
        warnings=frozenset({"google_storage_bucket.results[0] is destroyed, with its objects"}),
    ),
    "results_topic = true": Change({"results_topic": True}, interrupts=_WAIT),
    "results_ttl_days = 30": Change(
        {"results_ttl_days": 30}, interrupts=frozenset({"google_firestore_field.created_at"})
    ),
    "results_ttl_days = 60, from 30": Change(
        {"results_ttl_days": 60},
        OTHER,
        interrupts=frozenset({"google_firestore_field.created_at"}),
    ),
    "results_ttl_days = null, from 30": Change(
        {"results_ttl_days": None},
        OTHER,
        interrupts=frozenset({"google_firestore_field.created_at"}),
    ),
    "scan_images = true": Change({"scan_images": True}),
    'settings = {MIN_CONFIDENCE = "0.4"}': Change({"settings": {"MIN_CONFIDENCE": "0.4"}}),
    'silence_schedule = "0 * * * *"': Change({"silence_schedule": "0 * * * *"}),
    "silence_schedule = null, with alerts": Change(
        {"silence_schedule": None},
        {"alerts_topic": True},
        destroys=frozenset({"google_cloud_scheduler_job.silence"}),
    ),
    "slo_goal = 0.9": Change({"slo_goal": 0.9}),
    "slo_goal = null": Change(
        {"slo_goal": None},
        destroys=frozenset(
            {
                "google_monitoring_alert_policy.burn_rate",
                "google_monitoring_custom_service.main",
                "google_monitoring_slo.uploads",
            }
        ),
    ),
    "soft_delete_days = 14": Change({"soft_delete_days": 14}),
    'upload_events = "both"': Change({"upload_events": "both"}, interrupts=_WAIT),
    'upload_events = "notification", from "both"': Change(
        {"upload_events": "notification"},
        OTHER,
        interrupts=_WAIT,
        destroys=_EVENTARC,
    ),
    'upload_events = "eventarc", from "both"': Change(
        {"upload_events": "eventarc"},
        OTHER,
        interrupts=_WAIT,
        destroys=_TOPIC,
        warnings=_MESSAGES_LOST,
    ),
    'upload_events = "both", from "notification"': Change(
        {"upload_events": "both"}, {"upload_events": "notification"}, interrupts=_WAIT
    ),
    "uploads_retention_days = 7": Change({"uploads_retention_days": 7}),
    'vpc_egress = "all-traffic"': Change({"vpc_egress": "all-traffic", "vpc_network": "net-1"}),
    'vpc_network = "net-1"': Change({"vpc_network": "net-1"}),
    'vpc_subnetwork = "sub-1"': Change({"vpc_subnetwork": "sub-1"}),
    "versioning = true": Change({"versioning": True}),
}


def effects(changes: dict[str, Change], folder: Path) -> dict[str, Effect]:
    """Plan every change, and return what it does. `nothing changed` is a row for every start.

    Args:
        changes: by name.
        folder: for files of the run. It must exist.
    """
    rows = [{"name": name, "set": row.set, "from": row.start} for name, row in changes.items()]
    return {name: Effect.of(report) for name, report in matrix(rows, folder).items()}


_COUNTED = ("create", "update")
_NAMED = ("replace, new one first", "replace, OLD ONE FIRST", "DESTROY")


def as_table(found: dict[str, Effect]) -> str:
    """Return the effects as a Markdown table: how many resources, and which are replaced."""
    headers = ("change", "creates", "updates", "replaces, new one first")
    rows = []
    for name, effect in found.items():
        cells = [
            *(str(sum(effect.actions.get(action, Counter()).values())) for action in _COUNTED),
            *(_listed(effect.actions.get(action, Counter())) for action in _NAMED),
        ]
        rows.append((code(name), *(["", "**refused**", "", "", ""] if effect.refused else cells)))
    return table((*headers, "replaces, old one first", "destroys"), rows)


def _listed(addresses: Counter[str]) -> str:
    return ", ".join(
        code(address) + (f" ({count})" if count > 1 else "")
        for address, count in sorted(addresses.items())
    )


def _in_module(text: str) -> str:
    return text.replace("module.yolo_batch.", "")


if __name__ == "__main__":
    argparse.ArgumentParser(prog="tests.deploy.changes", usage="python -m %(prog)s").parse_args()
    if not STANDIN.exists():
        sys.exit(f"{STANDIN} is missing. It has the fake of the google provider.")
    with tempfile.TemporaryDirectory() as temporary:
        print(as_table(effects(CHANGES, Path(temporary))))
