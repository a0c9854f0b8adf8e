"""gcloud as Terraform and cloudbuild.yaml call it: the real gcloud, on a mock of the REST APIs.

The commands are not written here. They come from an apply without the google provider (standin.py),
from the output build_command, and from the scripts of cloudbuild.yaml. The tests compare the calls
that gcloud makes with what they should change, and with the roles that Terraform grants.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.google_apis import Call, GoogleApis, google_apis
from tests.deploy.standin import BASE, REPOSITORY, Applied, needs_standin, terraform

PATIENCE_SECONDS = 300
CONFIG: dict[str, Any] = yaml.safe_load((REPOSITORY / "cloudbuild.yaml").read_text())
STEPS: dict[str, str] = {step["id"]: step["script"] for step in CONFIG["steps"]}
REGION = "us-central1"
REPOSITORY_PATH = f"{REGION}-docker.pkg.dev/project-1/yolo-batch/service"
FIRST = f"{REPOSITORY_PATH}:latest-cpu"
FIRST_DIGEST = f"{REPOSITORY_PATH}@sha256:{'cd' * 32}"  # what the mock resolves every tag to
needs_gcloud = pytest.mark.skipif(
    not shutil.which("gcloud"), reason="NOT CHECKED: the Google Cloud CLI is not installed"
)
pytestmark = needs_gcloud


@pytest.fixture
def apis() -> Iterator[GoogleApis]:
    with google_apis() as found:
        yield found


@pytest.fixture(scope="module")
def gcloud_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gcloud")


# --- Permissions

# What the calls need, from the permission references of the APIs, on cloud.google.com:
# /run/docs/reference/iam/permissions, /pubsub/docs/access-control,
# /storage/docs/access-control/iam-json, /build/docs/iam-roles-permissions and
# /resource-manager/docs/access-control-proj. For a deployment, also "Required roles" of
# /run/docs/deploying.
DEPLOYMENT = ("iam.serviceAccounts.actAs", "artifactregistry.repositories.downloadArtifacts")
PERMISSIONS: list[tuple[str, str, tuple[str, ...]]] = [
    ("GET", r"run\.googleapis\.com/.*/services/[^/]+", ("run.services.get",)),
    ("PUT", r"run\.googleapis\.com/.*/services/[^/]+", ("run.services.update", *DEPLOYMENT)),
    ("GET", r"run\.googleapis\.com/.*/revisions/[^/]+", ("run.revisions.get",)),
    ("GET", r"run\.googleapis\.com/.*/jobs/[^/]+", ("run.jobs.get",)),
    ("PUT", r"run\.googleapis\.com/.*/jobs/[^/]+", ("run.jobs.update", *DEPLOYMENT)),
    ("GET", r"storage\.googleapis\.com/storage/v1/b/[^/]+", ("storage.buckets.get",)),
    ("POST", r"storage\.googleapis\.com/upload/.*", ("storage.objects.create",)),
    (
        "POST",
        r"cloudbuild\.googleapis\.com/.*/builds",
        ("cloudbuild.builds.create", "iam.serviceAccounts.actAs"),
    ),
    ("GET", r"cloudbuild\.googleapis\.com/.*/builds/[^/]+", ("cloudbuild.builds.get",)),
    (
        "PATCH",
        r"pubsub\.googleapis\.com/.*/subscriptions/[^/:]+",
        ("pubsub.subscriptions.update", "pubsub.topics.attachSubscription"),
    ),
    ("GET", r"pubsub\..*:getIamPolicy", ("pubsub.subscriptions.getIamPolicy",)),
    ("POST", r"pubsub\..*:setIamPolicy", ("pubsub.subscriptions.setIamPolicy",)),
    ("POST", r"cloudresourcemanager\..*:getIamPolicy", ("resourcemanager.projects.getIamPolicy",)),
    ("POST", r"cloudresourcemanager\..*:setIamPolicy", ("resourcemanager.projects.setIamPolicy",)),
]
# Permissions of the predefined roles that matter here. From Google's list of roles, as collected
# in github.com/iann0036/iam-dataset (gcp/roles), read in November 2026.
ROLES: dict[str, set[str]] = {
    "roles/artifactregistry.writer": {
        "artifactregistry.repositories.downloadArtifacts",
        "artifactregistry.repositories.uploadArtifacts",
        "artifactregistry.tags.create",
        "artifactregistry.tags.update",
    },
    "roles/cloudbuild.builds.editor": {"cloudbuild.builds.create", "cloudbuild.builds.get"},
    "roles/iam.serviceAccountUser": {"iam.serviceAccounts.actAs"},
    "roles/run.developer": {
        "run.jobs.get",
        "run.jobs.update",
        "run.revisions.get",
        "run.services.get",
        "run.services.update",
    },
    "roles/serviceusage.serviceUsageConsumer": {"serviceusage.services.use"},
    "roles/storage.legacyBucketWriter": {"storage.buckets.get", "storage.objects.create"},
}


def permissions_of(calls: list[Call]) -> set[str]:
    """Return the permissions that the calls need. Fail for a call that is not in the table."""
    needed: set[str] = set()
    for call in calls:
        found = [
            permissions
            for method, pattern, permissions in PERMISSIONS
            if method == call.method
            and re.fullmatch(pattern, call.host.removeprefix(f"{REGION}-") + call.path)
        ]
        assert len(found) == 1, f"the table has not one entry for {call.method} {call.path}"
        needed.update(found[0])
    return needed


# --- Terraform's commands


def granted_to_builder(applied: Applied) -> list[tuple[str, str]]:
    """Return each role of Cloud Build's account, and the resource that it applies to."""
    member = applied.one("google_service_account", "build")["member"]
    kinds = ("name", "service_account_id", "repository", "bucket", "project")
    return [
        (each.values["role"], next(each.values[kind] for kind in kinds if each.values.get(kind)))
        for each in applied.resources
        if each.type.endswith("_iam_member") and each.values["member"] == member
    ]


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Applied:
    """Return what an apply with a GPU left: it gives gcloud more options than a CPU."""
    folder = tmp_path_factory.mktemp("state")
    variables = {**BASE, "accelerator": "nvidia-l4"}
    run = terraform("apply", "-auto-approve", variables=variables, state=folder)
    assert run.returncode == 0, run.output
    return Applied(folder)


def gcloud(
    apis: GoogleApis, folder: Path, command: str, directory: Path = REPOSITORY
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", "-c", command],
        cwd=directory,
        env=apis.environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a small repository: gcloud packs and uploads the folder that it runs in."""
    shutil.copy(REPOSITORY / "cloudbuild.yaml", tmp_path)
    return tmp_path


@needs_standin
def test_builds_submit_works_with_the_documented_roles(
    apis: GoogleApis, applied: Applied, gcloud_folder: Path, source: Path
) -> None:
    first = shlex.join(["gcloud", *next(c for c in applied.commands if c[0] == "builds")])
    for command, deploy in ((first, "false"), (applied.outputs["build_command"], "true")):
        apis.calls.clear()
        done = gcloud(apis, gcloud_folder, command, source)
        assert done.returncode == 0, done.stderr
        bucket, upload, create, poll = apis.calls
        assert bucket.path == "/storage/v1/b/my-project-1-yolo-batch-build"
        assert upload.path == "/upload/storage/v1/b/my-project-1-yolo-batch-build/o"
        assert create.path == "/v1/projects/my-project-1/locations/europe-west1/builds"
        build = create.body
        assert build["serviceAccount"].startswith(
            "projects/my-project-1/serviceAccounts/yolo-batch-"
        )
        assert build["source"]["storageSource"]["object"] == upload.query["name"]
        assert build["substitutions"]["_DEPLOY"] == deploy
        assert set(build["substitutions"]) == set(CONFIG["substitutions"])
        assert [step["id"] for step in build["steps"]] == list(STEPS)
        assert build["images"] == CONFIG["images"]
        assert build["substitutions"]["_TARGET"] == "gpu"
        assert build["options"]["machineType"] == "E2_HIGHCPU_8"
        assert poll.path == f"{create.path}/build-1"
    page = (REPOSITORY / "docs/how-to/terraform-module.md").read_text()
    section = page.partition("**Whoever only deploys**")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`(roles/[\w.]+)`", section))
    assert permissions_of(apis.calls) <= {p for role in documented for p in ROLES.get(role, ())}
    apis.build_status = "FAILURE"
    assert gcloud(apis, gcloud_folder, applied.outputs["build_command"], source).returncode == 1


@needs_standin
def test_subscription_is_tuned_by_the_expected_calls(
    apis: GoogleApis, applied: Applied, gcloud_folder: Path
) -> None:
    for command in applied.commands:
        if command[0] != "builds":
            done = gcloud(apis, gcloud_folder, shlex.join(["gcloud", *command]))
            assert done.returncode == 0, done.stderr
    (name,) = apis.subscriptions
    subscription = apis.subscriptions[name]
    topics = "projects/my-project-1/topics"
    assert {key: value for key, value in subscription.items() if key != "name"} == {
        "ackDeadlineSeconds": 600,
        "deadLetterPolicy": {
            "deadLetterTopic": f"{topics}/yolo-batch-dead-letters",
            "maxDeliveryAttempts": 50,
        },
        "expirationPolicy": {},
        "messageRetentionDuration": "604800s",
        "retryPolicy": {"minimumBackoff": "10s", "maximumBackoff": "600s"},
    }
    (binding,) = apis.policies[name]["bindings"]
    assert binding["role"] == "roles/pubsub.subscriber"
    assert binding["members"][0].endswith("@gcp-sa-pubsub.iam.gserviceaccount.com")
    needed = permissions_of(apis.calls)
    assert {permission for permission in needed if permission.startswith("pubsub.")} == {
        "pubsub.subscriptions.getIamPolicy",
        "pubsub.subscriptions.setIamPolicy",
        "pubsub.subscriptions.update",
        "pubsub.topics.attachSubscription",
    }


def test_grant_to_an_agent_is_added_to_the_policy(apis: GoogleApis, gcloud_folder: Path) -> None:
    kept = {"role": "roles/owner", "members": ["user:a@example.com"]}
    apis.policies["projects/my-project-1"] = {"bindings": [kept], "etag": "BwXhqDiyPmI="}
    command = (
        "gcloud projects add-iam-policy-binding my-project-1 --member=serviceAccount:x@y.iam"
        " --role=roles/eventarc.serviceAgent --condition=None --quiet"
    )
    done = gcloud(apis, gcloud_folder, command)
    assert done.returncode == 0, done.stderr
    added = {"role": "roles/eventarc.serviceAgent", "members": ["serviceAccount:x@y.iam"]}
    bindings = apis.policies["projects/my-project-1"]["bindings"]
    assert sorted(bindings, key=lambda b: b["role"]) == [added, kept]
    assert permissions_of(apis.calls) == {
        "resourcemanager.projects.getIamPolicy",
        "resourcemanager.projects.setIamPolicy",
    }


# --- Cloud Build's steps

# `docker` as the steps use it: it runs gcloud, smoke-tests, and notes what it pushes.
_DOCKER = """\
#!/usr/bin/env bash
case "$*" in
  run*google-cloud-cli*) while [[ $1 != gcloud ]]; do shift; done; exec "$@" ;;
  run*" smoke "*) exit "${FAKE_SMOKE_EXIT:-0}" ;;
  "image inspect"*) echo "$FAKE_IMAGE" ;;
  push*) echo "${@: -1}" >> pushed.txt ;;
esac
"""


def digest(build: str) -> str:
    return f"{REPOSITORY_PATH}@sha256:{build * 64}"


@dataclass
class Build:
    """A build: its workspace, and its image."""

    apis: GoogleApis
    gcloud_folder: Path
    workspace: Path
    image: str

    def run(self, *steps: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run the scripts of steps, as Cloud Build does, until the first that fails."""
        (self.workspace / "bin").mkdir(parents=True, exist_ok=True)
        docker = self.workspace / "bin" / "docker"
        docker.write_text(_DOCKER)
        docker.chmod(0o755)
        environment = self.apis.environment(self.gcloud_folder)
        environment |= {**CONFIG["substitutions"], "_BUCKET": "uploads"}
        environment |= {"PROJECT_ID": "project-1", "BUILD_ID": "build-1", "FAKE_IMAGE": self.image}
        environment |= {"PATH": f"{docker.parent}:{environment['PATH']}", **variables}
        for name in steps:
            script = self.workspace / f"{name}.sh"
            script.write_text(STEPS[name])
            script.chmod(0o755)
            done = subprocess.run(
                [script],
                cwd=self.workspace,
                env=environment,
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECONDS,
            )
            if done.returncode:
                break
        return done

    def pushed(self) -> list[str]:
        file = self.workspace / "pushed.txt"
        return file.read_text().split() if file.exists() else []


DEPLOY = ("push", "deploy")
DECIDE = ("keep-or-roll-back", "latest")


@pytest.fixture
def builds(apis: GoogleApis, gcloud_folder: Path, tmp_path: Path) -> dict[str, Build]:
    """Return two builds of one service, which Terraform has deployed by a tag."""
    apis.add_service("yolo-batch", FIRST)
    apis.add_job("yolo-batch-reconcile", FIRST)
    return {name: Build(apis, gcloud_folder, tmp_path / name, digest(name)) for name in ("a", "b")}


@needs_standin
def test_passed_smoke_test_keeps_image_within_its_roles(
    apis: GoogleApis, applied: Applied, builds: dict[str, Build]
) -> None:
    done = builds["a"].run(*DEPLOY, "smoke", *DECIDE)
    assert done.returncode == 0, done.stderr
    assert apis.image("yolo-batch") == apis.image("yolo-batch-reconcile") == digest("a")
    assert builds["a"].pushed()[-1] == FIRST
    assert {call.host for call in apis.calls} == {f"{REGION}-run.googleapis.com"}
    changed = [call.path.rpartition("/")[2] for call in apis.calls if call.method == "PUT"]
    assert changed == ["yolo-batch", "yolo-batch-reconcile"]
    granted = granted_to_builder(applied)
    known = {p for role, _ in granted for p in ROLES.get(role, set())}
    assert permissions_of(apis.calls) <= known
    # Each grant is for what the call changes, and for the account that it runs as.
    service = applied.one("google_cloud_run_v2_service", "main")
    job = applied.one("google_cloud_run_v2_job", "reconcile")
    assert service["template"][0]["containers"][0]["image"].endswith("/service:latest-gpu")
    for target, account in (
        (service["name"], service["template"][0]["service_account"]),
        (job["name"], job["template"][0]["template"][0]["service_account"]),
    ):
        on = [what for role, what in granted if role == "roles/run.developer"]
        acts_as = [what for role, what in granted if role == "roles/iam.serviceAccountUser"]
        assert any(what.endswith(target) for what in on)
        assert any(what.endswith(account) for what in acts_as)


def test_failed_smoke_test_rolls_back_to_the_digest(
    apis: GoogleApis, builds: dict[str, Build]
) -> None:
    done = builds["a"].run(*DEPLOY, "smoke", *DECIDE, FAKE_SMOKE_EXIT="1")
    assert done.returncode == 1
    assert f"The smoke test of {digest('a')} failed" in done.stderr
    assert apis.image("yolo-batch") == FIRST_DIGEST
    assert apis.image("yolo-batch-reconcile") == FIRST
    assert builds["a"].pushed() == [f"{REPOSITORY_PATH}:build-1"]


def test_build_leaves_the_image_of_a_later_build(
    apis: GoogleApis, builds: dict[str, Build]
) -> None:
    first, second = builds["a"], builds["b"]
    apis.add_service("yolo-batch", FIRST_DIGEST)
    assert first.run(*DEPLOY).returncode == 0
    # The second build deploys and ends during the smoke test of the first.
    assert second.run(*DEPLOY, "smoke", *DECIDE, _JOBS="").returncode == 0
    for smoke_exit in ("1", "0"):
        first.run("smoke", FAKE_SMOKE_EXIT=smoke_exit)
        done = first.run(*DECIDE)
        assert done.returncode == int(smoke_exit)
        assert apis.image("yolo-batch") == digest("b")
        assert apis.image("yolo-batch-reconcile") == FIRST
        assert first.pushed() == [f"{REPOSITORY_PATH}:build-1"]
    assert second.pushed()[-1] == FIRST
