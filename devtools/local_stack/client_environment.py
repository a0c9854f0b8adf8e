"""The environment variables that point clients, `gcloud` and `gsutil` to the stack.

No account and no credentials are needed.
"""

import os
import shlex
import shutil
from collections.abc import Iterable, Mapping
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
    """Return the variables that Google's client libraries read. Hosts are `host:port`."""
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
    """Return the variables that `gcloud` and `gsutil` read.

    Args:
        project: the default project of both tools.
        pubsub_host: the Pub/Sub emulator, as `host:port`.
        proxy_url: the proxy for `gcloud`, with a slash at the end.
        proxy_https_port: the proxy's port for `gsutil`.
        ca_file: the certificate authority of that port.
        directory: where `boto.cfg` is written, and where both tools keep their state.
    """
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
        # A separate configuration, which ignores the user's account, project and proxy.
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
        # In the SDK's gsutil, this setting overrides the CA file in BOTO_CONFIG. On a machine where
        # it is another file, gsutil would retry for half an hour. gcloud uses plain HTTP here.
        "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE": str(ca_file),
    }


def export_lines(environment: Mapping[str, str]) -> list[str]:
    """Return the environment as lines to paste into a shell."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]


def upload_command(sources: Iterable[str | Path], destination: str) -> list[str] | None:
    """Return the `gcloud storage cp` command that copies files or directories to `gs://...`.

    Returns None if `gcloud` is not installed, or if a source has one of `*?[]` in its name:
    `gcloud` would read it as a pattern, and has no way to quote it.
    """
    names = [str(source) for source in sources]
    is_pattern = any(character in name for name in names for character in "*?[]")
    if is_pattern or not shutil.which("gcloud"):
        return None
    return ["gcloud", "storage", "cp", "--recursive", *names, destination]


def upload_line(bucket: str) -> str:
    """Return a shell line that uploads `IMAGE.jpg`, by `gcloud` or by the Python client."""
    if shutil.which("gcloud"):
        return f"gcloud storage cp IMAGE.jpg gs://{bucket}/"
    blob = f"storage.Client().bucket('{bucket}').blob('IMAGE.jpg')"
    return (
        f"python -c \"from google.cloud import storage; {blob}.upload_from_filename('IMAGE.jpg')\""
    )


def _without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that exclude loopback from the environment's proxy, if it has one."""
    if not any(name.lower().endswith("_proxy") and environ[name] for name in environ):
        return {}
    known = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    hosts = ",".join(filter(None, [known, "127.0.0.1", "localhost"]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}  # gRPC reads only no_proxy
