"""Build the environments of the round trips: other tools read what this project exports.

    make roundtrips
    python -m devtools.roundtrip --folder DIR [NAME ...]

Each tool gets a virtual environment of its own, because some pin other versions of packages, and
some are large (1.8 GB together). Nothing is installed into the project's environment. The tests in
`tests/roundtrip` use the environments. They are skipped where an environment does not exist.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import platformdirs

FOLDER_VARIABLE = "YOLO_BATCH_ROUNDTRIPS"
BUILD_COMMAND = "make roundtrips"


@dataclass(frozen=True)
class Environment:
    """A virtual environment with one tool. `megabytes` is its size on disk."""

    name: str
    requirement: str
    megabytes: int


ENVIRONMENTS = (
    Environment("frictionless", "frictionless==5.21.0", 86),
    Environment("label-studio", "label-studio-sdk==2.1.2", 509),
    Environment("megadetector", "megadetector-utils==10.0.28", 701),
    Environment("supervision", "supervision==0.31.2", 458),
)


def default_folder() -> Path:
    """Return the folder of all environments: YOLO_BATCH_ROUNDTRIPS, or in the user's cache."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen) if chosen else platformdirs.user_cache_path("yolo-batch") / "roundtrips"


def python_of(name: str, folder: Path | None = None) -> Path | None:
    """Return the Python of an environment, or None if the environment is not complete."""
    environment = (folder or default_folder()) / name
    is_complete = (environment / "complete").exists()
    return environment / "bin" / "python" if is_complete else None


def build(environment: Environment, folder: Path) -> None:
    """Build an environment, unless it is complete.

    Raises:
        subprocess.CalledProcessError: pip failed. Its output says why.
    """
    target = folder / environment.name
    marker = target / "complete"
    if marker.exists() and marker.read_text(encoding="utf-8") == environment.requirement:
        return
    print(f"Building {target} ({environment.megabytes} MB) ...", flush=True)
    marker.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(target)], check=True)
    pip = [str(target / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, environment.requirement], check=True)
    marker.write_text(environment.requirement, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the environments that are named, or all of them, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=default_folder())
    names = [environment.name for environment in ENVIRONMENTS]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    for environment in ENVIRONMENTS:
        if not options.names or environment.name in options.names:
            build(environment, options.folder)
    print(f"The environments are in {options.folder}.")


if __name__ == "__main__":
    main()
