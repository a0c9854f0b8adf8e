"""A mock of the REST APIs that `gcloud` calls, so that the real gcloud runs without a network.

gcloud sends its requests through this server as an HTTP proxy, so each call has the host that it
has on Google Cloud, for example `europe-west1-run.googleapis.com`. The mock accepts every call,
remembers it, and keeps just enough state for gcloud to go on. It checks no permission:
test_gcloud.py compares the calls with the roles.
"""

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Json = dict[str, Any]

APIS = ("cloudbuild", "cloudresourcemanager", "pubsub", "run", "storage")


@dataclass(frozen=True)
class Call:
    """A call that gcloud made."""

    method: str
    host: str
    path: str
    query: dict[str, str]
    body: Json  # of an upload: the metadata of the object


@dataclass
class GoogleApis:
    """The state of the mock. Names of resources are those of the URLs."""

    address: tuple[str, int]
    calls: list[Call] = field(default_factory=list)
    services: dict[str, Json] = field(default_factory=dict)
    jobs: dict[str, Json] = field(default_factory=dict)
    revisions: dict[str, Json] = field(default_factory=dict)
    subscriptions: dict[str, Json] = field(default_factory=dict)
    policies: dict[str, Json] = field(default_factory=dict)
    build_status: str = "SUCCESS"

    def environment(self, folder: Path) -> dict[str, str]:
        """Return the environment in which gcloud calls this mock. `folder` is gcloud's own."""
        host, port = self.address
        variables = {k: v for k, v in os.environ.items() if not k.startswith("CLOUDSDK_")}
        variables |= {
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_CONFIG": str(folder),
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "true",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
            "CLOUDSDK_PROXY_TYPE": "http",
            "CLOUDSDK_PROXY_ADDRESS": host,
            "CLOUDSDK_PROXY_PORT": str(port),
        }
        # http instead of https, so that the proxy sees the requests.
        for api in APIS:
            variables[f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{api.upper()}"] = (
                f"http://{api}.googleapis.com/"
            )
        return variables

    def add_job(self, name: str, image: str) -> None:
        """Create a job of one container."""
        task = {"spec": {"containers": [{"image": image}]}}
        body = {
            "apiVersion": "run.googleapis.com/v1",
            "kind": "Job",
            "metadata": {"name": name, "namespace": "project-1"},
            "spec": {"template": {"metadata": {}, "spec": {"taskCount": 1, "template": task}}},
        }
        self.jobs[name] = body
        self._job(Call("PUT", "", "", {}, body), name)

    def add_service(self, name: str, image: str) -> None:
        """Deploy a service of one container, as Terraform does, with a first revision."""
        template = {"spec": {"containers": [{"image": image}]}}
        self.services[name] = {"metadata": {"name": name}, "spec": {"template": template}}
        self._deploy(name)

    def image(self, name: str) -> str:
        """Return the image of the service or job `name`."""
        spec = (self.services.get(name) or self.jobs[name])["spec"]["template"]["spec"]
        spec = spec.get("template", {}).get("spec") or spec  # a job's own template
        return str(spec["containers"][0]["image"])

    def answer(self, call: Call) -> tuple[int, Json]:
        """Return the status and body of the response."""
        self.calls.append(call)
        for pattern, handler in _HANDLERS:
            if matched := re.fullmatch(pattern, call.path):
                found = handler(self, call, *matched.groups())
                if found is not None:
                    return 200, found
        return 404, {"error": {"code": 404, "message": "not found", "status": "NOT_FOUND"}}

    # --- Cloud Run. gcloud uses its first API, which has the resources of Knative.

    def _deploy(self, name: str) -> None:
        service = self.services[name]
        generation = service["metadata"].get("generation", 0) + 1
        revision = f"{name}-{generation:05}"
        image = self.image(name)
        service["metadata"] |= {"generation": generation, "namespace": "project-1"}
        service["apiVersion"], service["kind"] = "serving.knative.dev/v1", "Service"
        conditions = [
            {"type": kind, "status": "True"}
            for kind in ("Ready", "ConfigurationsReady", "RoutesReady")
        ]
        status = service.setdefault("status", {})
        status |= {"conditions": conditions, "latestCreatedRevisionName": revision}
        status |= {"observedGeneration": generation, "url": f"https://{name}.run.app"}
        status |= {"latestReadyRevisionName": revision}
        status["traffic"] = [{"revisionName": revision, "percent": 100}]
        digest = image if "@sha256:" in image else image.rpartition(":")[0] + "@sha256:" + "cd" * 32
        self.revisions[revision] = {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Revision",
            "metadata": {"name": revision, "namespace": "project-1"},
            "spec": service["spec"]["template"]["spec"],
            "status": {"imageDigest": digest, "conditions": conditions},
        }

    def _service(self, call: Call, name: str) -> Json | None:
        if call.method == "PUT" and name in self.services:
            body = {**call.body, "status": self.services[name]["status"]}
            body["metadata"]["generation"] = self.services[name]["metadata"]["generation"]
            self.services[name] = body
            self._deploy(name)
        return self.services.get(name)

    def _revision(self, call: Call, name: str) -> Json | None:
        return self.revisions.get(name)

    def _revisions(self, call: Call) -> Json:
        return {"items": list(self.revisions.values()), "metadata": {}}

    def _job(self, call: Call, name: str) -> Json | None:
        if call.method == "PUT" and name in self.jobs:
            generation = self.jobs[name]["metadata"].get("generation", 0) + 1
            conditions = [{"type": "Ready", "status": "True"}]
            status = {"conditions": conditions, "observedGeneration": generation}
            self.jobs[name] = {**call.body, "status": status}
            self.jobs[name]["metadata"]["generation"] = generation
        return self.jobs.get(name)

    # --- Pub/Sub, and the policies of every API

    def _subscription(self, call: Call, name: str) -> Json | None:
        if call.method == "PATCH":
            self.subscriptions.setdefault(name, {"name": name})
            self.subscriptions[name] |= call.body["subscription"]
        return self.subscriptions.get(name)

    def _policy(self, call: Call, resource: str, verb: str) -> Json:
        if verb == "setIamPolicy":
            self.policies[resource] = call.body["policy"]
        return self.policies.get(resource, {"etag": "BwXhqDiyPmI=", "version": 1})

    # --- Cloud Build, and the bucket for its sources

    def _bucket(self, call: Call, name: str) -> Json:
        return {"kind": "storage#bucket", "name": name, "id": name}

    def _upload(self, call: Call, bucket: str) -> Json:
        found = {"kind": "storage#object", "bucket": bucket, "name": call.query["name"]}
        return {**found, "generation": "1", "size": call.body["size"]}

    def _builds(self, call: Call, project: str, region: str) -> Json:
        build = {**call.body, "id": "build-1", "projectId": project, "status": "QUEUED"}
        kind = "type.googleapis.com/google.devtools.cloudbuild.v1.BuildOperationMetadata"
        return {
            "name": f"operations/build/{project}/1",
            "metadata": {"@type": kind, "build": build},
        }

    def _build(self, call: Call, project: str, name: str) -> Json:
        options = {"logging": "CLOUD_LOGGING_ONLY"}
        return {
            "id": name,
            "projectId": project,
            "status": self.build_status,
            "options": options,
        }


_KNATIVE = r"/apis/serving\.knative\.dev/v1/namespaces/[^/]+"
_HANDLERS: list[tuple[str, Any]] = [
    (rf"{_KNATIVE}/services/([^/]+)", GoogleApis._service),
    (rf"{_KNATIVE}/revisions/([^/]+)", GoogleApis._revision),
    (rf"{_KNATIVE}/revisions", GoogleApis._revisions),
    (r"/apis/run\.googleapis\.com/v1/namespaces/[^/]+/jobs/([^/]+)", GoogleApis._job),
    (
        r"/v1/(projects/[^/:]+(?:/subscriptions/[^/:]+)?):(getIamPolicy|setIamPolicy)",
        GoogleApis._policy,
    ),
    (r"/v1/(projects/[^/]+/subscriptions/[^/:]+)", GoogleApis._subscription),
    (r"/storage/v1/b/([^/]+)", GoogleApis._bucket),
    (r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", GoogleApis._upload),
    (r"/v1/projects/([^/]+)/locations/([^/]+)/builds", GoogleApis._builds),
    (r"/v1/projects/([^/]+)/locations/[^/]+/builds/([^/]+)", GoogleApis._build),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    apis: GoogleApis

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def _serve(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if (self.headers["Content-Type"] or "").startswith("multipart/"):
            content = content.split(b"\n\n")[1].split(b"\n")[0]  # the metadata of an object
        url = urlsplit(self.path)  # absolute, because this server is a proxy
        body = json.loads(content.strip() or b"{}")
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        call = Call(self.command, url.netloc, unquote(url.path), query, body)
        status, found = self.apis.answer(call)
        response = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve


@contextmanager
def google_apis() -> Iterator[GoogleApis]:
    """Run the mock on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    apis = _Handler.apis = GoogleApis(("127.0.0.1", server.server_address[1]))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield apis
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
