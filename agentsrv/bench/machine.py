"""What the machine gives, and what a process takes of it; Linux tells, other systems say less."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

PAGE: Final = os.sysconf("SC_PAGE_SIZE")  # bytes
CPU_CLOCK: Final = 2  # with a process id above it, Linux' name of that process's clock
HAS_PROC: Final = Path("/proc/self/statm").exists()
BLOCK: Final = bytes(4096)  # what is synced: about a commit of one task


def resident(pid: int) -> int:
    """Bytes of the machine's memory that the process has now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def cpu_seconds(pid: int) -> float:
    """Seconds that the process and its children that live have computed so far."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(
        time.clock_gettime(~member << 3 | CPU_CLOCK) for member in (pid, *map(int, children))
    )


def sync_times(folder: Path, count: int) -> list[float]:
    """Seconds of each of ``count`` syncs of a block that was appended to a file in ``folder``."""
    times = []
    path = folder / "sync.probe"
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(BLOCK)
            before = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - before)
    path.unlink()
    return times


def describe() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "sqlite": sqlite3.sqlite_version,
        "uvloop": version("uvloop") if find_spec("uvloop") else None,
    }
