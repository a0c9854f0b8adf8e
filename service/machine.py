"""CPU and memory that this process may use."""

import math
import os
import platform
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: quota ("max": none) and period, both in µs
_CPU = Path("/proc/cpuinfo")
_MEMORY = Path("/sys/fs/cgroup/memory.max")  # cgroup v2: bytes, or "max": no limit


def cores() -> int:
    """Return how many CPU cores its affinity and its control group's quota allow this process."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return min(len(os.sched_getaffinity(0)), _quota())
    return os.cpu_count() or 1


def _quota() -> int:
    """Return the control group's quota in cores, rounded up, or 65,536 if it has none.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    try:
        quota, period = map(int, _QUOTA.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no such file, or "max"
        return 2**16
    return max(1, math.ceil(quota / period))


def cpu_name() -> str:
    """Return the CPU's name, or the architecture if the system reports no name."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the CPU's features, such as `avx512_vnni`. Empty: the system reports none."""
    return frozenset(_cpu_line("flags").split())


def _cpu_line(name: str) -> str:
    try:
        lines = _CPU.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, "")


def memory_bytes() -> int:
    """Return the machine's memory in bytes, or the control group's limit if that is less.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(installed, int(_MEMORY.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such file, or "max"
        return installed
