"""The environment by which clients, `gcloud` and `gsutil` find the stack, and no account."""

import os
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_BOTO = """\
[Credentials]
gs_json_host = 127.0.0.1
gs_json_port = {port}

[Boto]
https_validate_certificates = True
ca_certificates_file = {ca_file}
num_retries = 4

[GSUtil]
default_project_id = {project}
prefer_api = json
state_dir = {state_directory}
software_update_check_period = 0
disable_analytics_prompt = True
use_gcloud_storage = False
"""


def client_environment(
    *, project: str, pubsub_host: str, firestore_host: str, storage_url: str
) -> dict[str, str]:
    """Return what Google's client libraries read."""
    return {
        "GOOGLE_CLOUD_PROJECT": project,
        "PUBSUB_EMULATOR_HOST": pubsub_host,
        "FIRESTORE_EMULATOR_HOST": firestore_host,
        "STORAGE_EMULATOR_HOST": storage_url,
        **_without_proxy(os.environ),
    }


def tool_environment(
    *, project: str, pubsub_host: str, proxy_url: str, proxy_https_port: int, ca_file: Path,
    directory: Path,
) -> dict[str, str]:  # fmt: skip
    """Return what `gcloud` and `gsutil` read, and write the files that it names."""
    boto = directory / "boto.cfg"
    boto.write_text(
        _BOTO.format(
            port=proxy_https_port,
            ca_file=ca_file,
            project=project,
            state_directory=directory / "gsutil",
        )  # fmt: skip
    )
    return {
        # A configuration of its own: the user's account, project and proxy are not ours.
        "CLOUDSDK_CONFIG": str(directory / "gcloud"),
        "CLOUDSDK_ACTIVE_CONFIG_NAME": "default",
        "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
        "CLOUDSDK_CORE_PROJECT": project,
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_CORE_PASS_CREDENTIALS_TO_GSUTIL": "false",
        "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
        "CLOUDSDK_SURVEY_DISABLE_PROMPTS": "true",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_PUBSUB": f"http://{pubsub_host}/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE": proxy_url,
        "BOTO_CONFIG": str(boto),
        # The `gsutil` of the SDK puts this one, which a company's machine may have set, above the
        # file in BOTO_CONFIG, and would then try again for half an hour. gcloud needs none: http.
        "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": str(ca_file),
    }


def export_lines(environment: Mapping[str, str]) -> list[str]:
    """Return the environment as lines to paste into a shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def upload_command(paths: Iterable[str | Path], destination: str) -> list[str] | None:
    """Return a command that copies files or directories to `gs://...`; None if no tool can."""
    sources: Sequence[str] = [str(path) for path in paths]
    if any(character in source for source in sources for character in "*?[]"):
        return None  # both tools would take the name as a pattern, and have no way to quote it
    if shutil.which("gcloud"):
        return ["gcloud", "storage", "cp", "--recursive", *sources, destination]
    if shutil.which("gsutil"):
        return ["gsutil", "-m", "cp", "-r", *sources, destination]
    return None


def _without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Keep loopback away from the proxy, if the environment has one."""
    if not any(name.lower().endswith("_proxy") and environ[name] for name in environ):
        return {}
    known = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    hosts = ",".join(filter(None, [known, "127.0.0.1", "localhost"]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}  # gRPC reads the second alone
