"""Who may import what: the layout of the package, held over its source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "service"

# What each module may import of the package, besides the standard library and its vendors below.
INTERNAL: dict[str, set[str]] = {
    "domain": set(),
    "errors": {"domain"},
    "settings": {"errors"},
    "logs": set(),
    "singleflight": set(),
    "stages": set(),
    "machine": set(),
    "budget": {"errors"},
    "deadline": {"errors"},
    "watchdog": set(),
    "labels": {"errors"},
    "events": {"domain", "errors"},
    "images": set(),
    "images.pixels": {"domain"},
    "images.letterbox": {"domain", "images.pixels"},
    "images.exif": set(),
    "images.opencv": {"domain", "errors", "images.pixels"},
    "images.png": {"domain", "errors", "images.exif", "images.opencv", "images.pixels"},
    "images.jpeg": {"domain", "errors", "images.exif", "images.opencv", "images.pixels"},
    "images.netpbm": {"domain", "errors", "images.pixels"},
    "images.pillow": {"domain", "errors", "images.exif", "images.pixels"},
    "images.jpeg2000": {
        "domain",
        "errors",
        "images.opencv",
        "images.pillow",
        "images.pixels",
    },
    "images.tiff": {"domain", "errors", "images.pillow"},
    "images.webp": {"domain", "errors", "images.opencv", "images.pillow", "images.pixels"},
    "images.formats": {
        "domain",
        "errors",
        "images.jpeg",
        "images.jpeg2000",
        "images.netpbm",
        "images.pillow",
        "images.pixels",
        "images.png",
        "images.tiff",
        "images.webp",
    },
    "images.read": {"domain", "errors", "images.formats", "images.pixels"},
    "images.sandbox": {"domain", "errors", "images.pixels", "images.read"},
    "images.decode": {
        "domain",
        "errors",
        "images.formats",
        "images.pixels",
        "images.read",
        "images.sandbox",
    },
    "outages": set(),
    "one_line": set(),
    "refusals": {"one_line"},
    "storage": {"deadline", "domain", "errors", "outages", "refusals"},
    "batching": {"errors"},
    "document": {"domain"},
    "report": set(),
    "annotate": {"domain", "images"},
    "store": {"deadline", "document", "domain", "errors", "one_line", "outages"},
    "publisher": {"domain", "errors", "events"},
    "pace": {"events"},
    "submission": {"domain", "errors", "events"},
    "reconcile": {"document", "domain", "errors"},
    "deadletters": {"domain", "errors", "events"},
    "subscriber": {"deadletters", "errors"},
    "smoke": {"document", "domain", "errors"},
    "detector": {
        "domain",
        "errors",
        "images",
        "stages",
        "detector.openvino",
        "detector.ultralytics",
    },
    "detector.openvino": {"detector", "domain", "errors", "images", "labels", "machine", "stages"},
    "detector.ultralytics": {
        "detector.openvino",
        "domain",
        "errors",
        "images",
        "labels",
        "stages",
    },
    "detector.identity": {"detector", "detector.ultralytics", "errors"},
    "detector.drawings": {"images"},
    "detector.canary": {"detector", "domain", "errors", "images"},
    "detector.truth": {"errors"},
    "detector.accuracy": {
        "detector",
        "detector.canary",
        "detector.truth",
        "domain",
        "errors",
        "images",
    },
    "detector.quantize": {"detector.openvino", "errors", "images"},
    "detector.export": {
        "detector",
        "detector.accuracy",
        "detector.canary",
        "detector.drawings",
        "detector.identity",
        "detector.openvino",
        "detector.quantize",
        "detector.truth",
        "detector.ultralytics",
        "domain",
        "errors",
        "images",
        "labels",
    },
    "pipeline": {
        "batching",
        "budget",
        "detector",
        "domain",
        "errors",
        "images",
        "machine",
        "singleflight",
        "stages",
        "suspects",
        "watchdog",
    },
    "app": {"errors", "events", "logs", "pipeline"},
    "detect": {"annotate", "detector", "document", "domain", "errors", "images", "pipeline"},
    "tokens": {"errors"},
    "gunicorn_conf": {"logs", "errors", "settings", "suspects"},
    "suspects": set(),
    "gunicorn_worker": set(),
}
COMPOSITION_ROOTS = {
    "main",
    "cli",
    "commands",
    "local",
    "chaos",
    "bench",
    "demo",
}  # these may import all of it

# Where each vendor's library may be imported.
VENDORS: dict[str, set[str]] = {
    "google.cloud.storage": {"storage", "smoke", "main", "commands", "local", "chaos", "bench"},
    "google.cloud.firestore": {"store", "main", "local", "chaos", "bench"},
    "google.cloud.firestore_v1": {"store"},
    "google.cloud.pubsub_v1": {"publisher", "subscriber", "local", "chaos"},
    "google.cloud.exceptions": {"storage", "smoke"},
    "google.api_core": {"storage", "store", "publisher", "subscriber", "smoke", "local"},
    "google.auth": {
        "storage",
        "store",
        "publisher",
        "subscriber",
        "smoke",
        "tokens",
        "main",
        "local",
    },
    "google.pubsub_v1": {"local"},
    "requests": {"storage", "smoke", "local", "bench"},
    "flask": {"app", "main", "bench", "chaos"},
    "werkzeug": {"app"},
    "gunicorn": {"gunicorn_worker"},
    "click": {"cli", "commands", "local", "bench"},
    "openvino": {
        "detector.openvino",
        "detector.export",
        "detector.quantize",
        "bench",
        "demo.train",
    },
    "nncf": {"detector.quantize"},
    "pycocotools": {"detector.accuracy"},
    "matplotlib": {"bench"},
    "urllib3": {"storage", "bench"},
    "google_crc32c": {"storage"},
    "cachetools": {"tokens"},
    "ultralytics": {"detector.ultralytics", "detector.export", "bench", "demo.train"},
    "torch": {"detector.ultralytics", "bench", "demo.train"},
    "numpy": {"images", "annotate", "smoke", "detector", "bench", "demo"},
    "cv2": {
        "images",
        "annotate",
        "detect",
        "smoke",
        "detector.drawings",
        "bench",
        "chaos",
        "demo",
    },
    "PIL": {"images"},
    "simplejpeg": {"images.jpeg"},
    "yaml": {"detector", "bench", "demo"},
    "tabulate": {"report", "commands", "bench", "chaos"},
    "grpc": {"local", "chaos"},
    "trustme": {"local"},
}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = name.removeprefix("service.") in MODULES or node.module in (
                    "google",
                    "google.cloud",
                )
                yield name if is_module else str(node.module)


def is_within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def own_imports(module: str) -> set[str]:
    names = (name for name in imported(MODULES[module]) if name.split(".")[0] == "service")
    return {name.removeprefix("service").removeprefix(".") for name in names} - {""}


def vendor_imports(module: str) -> set[str]:
    known = sys.stdlib_module_names | {"service"}
    return {name for name in imported(MODULES[module]) if name.split(".")[0] not in known}


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_module_imports_only_what_the_layout_says_of_the_package(module: str) -> None:
    if is_within(module, COMPOSITION_ROOTS):
        return
    assert module in INTERNAL, f"service/{module} is not in the layout: add its row here"
    allowed = INTERNAL[module]
    if "images" in allowed:  # all of it
        allowed = allowed | {name for name in MODULES if is_within(name, {"images"})}
    assert own_imports(module) <= allowed


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_module_imports_only_its_own_vendors(module: str) -> None:
    for name in vendor_imports(module):
        places = [places for vendor, places in VENDORS.items() if is_within(name, {vendor})]
        assert places, f"{name} has no row here"
        assert any(is_within(module, allowed) for allowed in places), f"{module} imports {name}"


def test_layout_names_only_modules_that_exist() -> None:
    assert set(INTERNAL) <= set(MODULES)
    assert all(any(is_within(m, {root}) for m in MODULES) for root in COMPOSITION_ROOTS)


@pytest.mark.parametrize(
    "module",
    [
        "domain",
        "errors",
        "settings",
        "labels",
        "events",
        "batching",
        "singleflight",
        "document",
        "pipeline",
        "outages",
        "refusals",
    ],
)
def test_pure_module_imports_no_vendor(module: str) -> None:
    assert vendor_imports(module) == set()


@pytest.mark.parametrize("module", [m for m in MODULES if not is_within(m, COMPOSITION_ROOTS)])
def test_only_composition_roots_import_composition_roots(module: str) -> None:
    assert not [name for name in own_imports(module) if is_within(name, COMPOSITION_ROOTS)]


@pytest.mark.parametrize("module", ["main", "cli"])
def test_demo_and_local_stack_are_imported_only_inside_functions(module: str) -> None:
    """The container carries neither."""
    top = ast.parse(MODULES[module].read_text(encoding="utf-8")).body
    names = [str(node.module) for node in top if isinstance(node, ast.ImportFrom)]
    assert not [name for name in names if name.startswith(("service.local", "service.demo"))]


def run_python(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_container_imports_neither_torch_nor_ultralytics() -> None:
    unwanted = "{'torch', 'ultralytics', 'service.local', 'service.demo'}"
    code = (
        "import sys, service.main, service.detector.openvino, service.storage, service.store; "
        f"print(sorted({unwanted} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_command_line_imports_no_heavy_library() -> None:
    """So that `--help` answers at once."""
    heavy = "{'torch', 'ultralytics', 'cv2', 'numpy', 'openvino', 'flask', 'google.cloud.storage'}"
    assert run_python(f"import sys, service.cli; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_import_of_openvino_brings_no_library_that_reports_its_use() -> None:
    code = (
        "import sys, service.detector.openvino; "
        "print([name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    assert run_python(code) == "[]"
