"""What this process may use of the machine."""

import math
import os
import platform
from pathlib import Path

_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: "max 100000", or microseconds of a period
_CPU = Path("/proc/cpuinfo")
_MEMORY = Path("/sys/fs/cgroup/memory.max")  # cgroup v2: "max", or bytes


def cores() -> int:
    """CPU cores that this process may run on: of its affinity, or fewer by its group's quota."""
    if hasattr(os, "sched_getaffinity"):  # Linux; macOS has none
        return min(len(os.sched_getaffinity(0)), _quota())
    return os.cpu_count() or 1


def _quota() -> int:
    """Cores that the control group may use, rounded up; unlimited where it does not tell.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    try:
        quota, period = map(int, _QUOTA.read_text(encoding="ascii").split())
    except (OSError, ValueError):  # no such file, or "max"
        return 2**16
    return max(1, math.ceil(quota / period))


def cpu_name() -> str:
    """Return the CPU's name, as far as the system reports it."""
    return _cpu_line("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the CPU's features, such as `avx512_vnni`; none where the system reports none."""
    return frozenset(_cpu_line("flags").split())


def _cpu_line(name: str) -> str:
    try:
        lines = _CPU.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return ""
    values = (line.partition(":")[2].strip() for line in lines if line.startswith(name))
    return next(values, "")


def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less by its group's limit.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
    """
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(_MEMORY.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such file, or "max"
        return machine
