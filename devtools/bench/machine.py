"""Machine, cores and versions, for the header of a report."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from devtools.bench.errors import BenchError
from service.machine import cpu_flags, cpu_name

_PACKAGES = ("yolo-batch", "openvino", "opencv-python-headless", "ultralytics", "torch", "gunicorn")


@dataclass(frozen=True)
class Cores:
    """The cores of the measured process, and the cores of all other processes."""

    service: frozenset[int]
    others: frozenset[int]

    @property
    def usable(self) -> frozenset[int]:
        """All cores of this process."""
        return self.service | self.others

    def __str__(self) -> str:
        """Return the split as a sentence."""
        service, others = (_shown(cores) for cores in (self.service, self.others))
        if self.service & self.others:
            return f"measured process, emulators and load on the same core {service}"
        return f"measured process on core {service}, emulators and load on core {others}"


def choose_cores(requested: str | None) -> Cores:
    """Split the cores that this process may use. By default, the measured process gets the last.

    Args:
        requested: cores for the measured process, such as `1` or `2-3,6`.

    Raises:
        BenchError: the cores do not exist, or this is not Linux.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise BenchError("The benchmark pins processes to cores and reads /proc: it needs Linux")
    usable = frozenset(os.sched_getaffinity(0))
    service = _parsed(requested) if requested else frozenset({max(usable)})
    if not service <= usable:
        raise BenchError(
            f"--cores {requested}: this process may use only the cores {_shown(usable)}"
        )
    return Cores(service, usable - service or usable)


def header(model: Mapping[str, object], cores: Cores, further: Mapping[str, str]) -> dict[str, str]:
    """Return machine, versions, date and model, one line each."""
    return {
        "machine": f"{cpu_model()}, {os.cpu_count()} cores; {cores}",
        "versions": ", ".join([f"Python {platform.python_version()}", *_versions()]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "model": (
            f"{model['name']} ({str(model['sha256'])[:8]}), {model['precision']}, "
            f"{model['image_size']} pixels, {model['runtime']}"
        ),
        **further,
    }


def cpu_model() -> str:
    """Return the name of the CPU, and its fastest instruction set for int8."""
    known = ("amx_int8", "avx512_vnni", "avx_vnni", "avx2")
    flag = next((flag for flag in known if flag in cpu_flags()), None)
    return cpu_name() + (f" ({flag})" if flag else "")


def _versions() -> list[str]:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:  # not installed: only some measurements need it
            continue
    return versions


def _parsed(text: str) -> frozenset[int]:
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            cores.update(range(int(first), int(last if dash else first) + 1))
        except ValueError as exc:
            raise BenchError(f"--cores {text} must be numbers, such as 1 or 2-3,6") from exc
    if not cores:
        raise BenchError(f"--cores {text} names no core")
    return frozenset(cores)


def _shown(cores: frozenset[int]) -> str:
    return ",".join(map(str, sorted(cores)))
