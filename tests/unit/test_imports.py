"""What is imported when. Who may import whom is in pyproject.toml; `make check` holds it."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_container_imports_neither_torch_nor_ultralytics() -> None:
    code = (
        "import sys, service.server.wsgi, service.inference.openvino, service.gcp.clients; "
        "print(sorted({'torch', 'ultralytics', 'devtools'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_service_imports_no_image_library() -> None:
    """Decoding is other processes' work; OpenCV alone takes a sixth of a second to import."""
    code = (
        "import sys, service.server.wsgi, service.server.app, service.inference.openvino, "
        "service.gcp.clients; print(sorted({'cv2', 'PIL', 'simplejpeg'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_letterbox_without_a_resize_imports_no_image_library() -> None:
    """Decoders have shrunk nearly all images already: the service only adds the padding."""
    code = (
        "import sys; import numpy as np; from service.images.letterbox import letterbox; "
        "letterbox(640, 480, image_size=640, stride=32).apply(np.zeros((480, 640, 3), np.uint8)); "
        "print(sorted({'cv2', 'PIL', 'simplejpeg'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_service_without_derived_images_imports_no_code_of_them() -> None:
    code = (
        "import sys, service.memory, service.images.decoder_process; print(sorted("
        "{f'service.images.{name}' for name in ('derive', 'render', 'annotate', 'redact')} "
        "& set(sys.modules)))"
    )
    assert run_python(code) == "[]"


@pytest.mark.parametrize("arguments", ["['--help']", "['detect', '--help']"], ids=str)
def test_help_imports_no_heavy_library(arguments: str) -> None:
    heavy = "{'torch', 'ultralytics', 'cv2', 'numpy', 'openvino', 'flask', 'grpc', 'google.cloud'}"
    code = (
        "import sys, contextlib, io; from service.cli.main import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    main({arguments})\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_command_line_imports_rich_only_to_print() -> None:
    code = "import sys, service.cli.main; print('rich' in sys.modules)"
    assert run_python(code) == "False"


def test_service_imports_no_library_of_the_command_line() -> None:
    code = (
        "import sys, service.server.wsgi, service.server.app, service.server.gunicorn_conf, "
        "service.inference.openvino, service.gcp.clients; "
        "print(sorted({'rich', 'rich_click', 'pygments', 'tabulate', 'service.cli'} "
        "& set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_service_imports_pubsub_only_for_a_topic() -> None:
    code = (
        "import sys, service.server.wsgi, service.server.app, service.gcp.clients; "
        "unwanted = {'google.cloud.pubsub_v1', 'service.publish.results_step', "
        "'service.publish.result_message'}; print(sorted(unwanted & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_service_imports_alerts_only_for_rules() -> None:
    code = (
        "import sys, service.server.wsgi, service.server.app, service.gcp.clients; "
        "print(sorted(name for name in sys.modules if 'alert' in name))"
    )
    assert run_python(code) == "[]"


def test_openvino_imports_no_library_that_reports_usage() -> None:
    code = (
        "import sys, service.inference.openvino; "
        "print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    assert run_python(code) == "[]"


def test_import_rules_name_every_package_of_the_service() -> None:
    """A package that no rule names could import anything. Its modules can be named instead."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    [layers] = [rule["layers"] for rule in contracts["contracts"] if rule["type"] == "layers"]
    named = {name for layer in layers for name in layer.split(" | ")}
    split = {name.rpartition(".")[0] for name in named} - {"service", ""}
    folders = [ROOT / name.replace(".", "/") for name in ("service", *split)]
    found = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in folders
        for path in folder.iterdir()
        if path.stem not in ("__init__", "__pycache__", "bundled_model", "py")
    } - split
    assert found == named - {"devtools"}
