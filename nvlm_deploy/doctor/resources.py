"""Memory, swap and disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from nvlm_deploy.doctor.facts import Facts
from nvlm_deploy.doctor.line import Line, error, ok, warning
from nvlm_deploy.doctor.system import System

GIB = 1 << 30
_LITTLE_DISK, _LOW_DISK = 2 * 10**9, 20 * 10**9


def resource_lines(facts: Facts, system: System) -> Iterator[Line]:
    """What is free of memory and disk, and where swap is."""
    sizes = meminfo(system)
    total, free = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    if not total:
        yield warning("memory", "not shown by /proc/meminfo", "free -h shows it on Linux")
    elif facts.jetson and free < total / 2:
        yield warning(
            "memory",
            f"{_gib(free)} of {_gib(total)} are free, shared by GPU and CPU",
            "close what runs; a desktop takes 1 to 2 GiB: sudo systemctl isolate multi-user.target",
        )
    else:
        shared = ", shared by GPU and CPU" if facts.jetson else ""
        yield ok("memory", f"{_gib(free)} of {_gib(total)} are free{shared}")
    yield _swap(facts, swaps(system.read("proc/swaps") or ""))
    yield _disk(system.free_disk())


def _swap(facts: Facts, devices: Mapping[str, int]) -> Line:
    compressed = sum(size for name, size in devices.items() if "zram" in name)
    on_disk = sum(devices.values()) - compressed
    found = f"{_gib(on_disk)} on disk, {_gib(compressed)} compressed in memory"
    if not facts.jetson:
        return ok("swap", found)
    if compressed:
        advice = (
            "zram swaps into the memory that engines need: sudo systemctl disable --now nvzramconfig, and "
            "a swap file on NVMe for builds"
        )
        return warning("swap", found, advice)
    if not on_disk:
        advice = "building takes more memory than running: sudo fallocate -l 32G /swapfile, mkswap, swapon"
        return warning("swap", found, advice)
    return ok("swap", found)


def _disk(free: int | None) -> Line:
    if free is None:
        return warning("disk", "not shown", "df -h . shows it")
    found = f"{free / 1e9:.1f} GB free here"
    if free < _LITTLE_DISK:
        return error("disk", found, "not even a small engine fits: make room or use another folder")
    if free < _LOW_DISK:
        return warning("disk", found, "NVLM-D-72B takes 160 GB as released and 50 GB as an INT4 engine")
    return ok("disk", found)


def meminfo(system: System) -> dict[str, int]:
    """/proc/meminfo in bytes."""
    rows = re.findall(r"^(\w+):\s+(\d+) kB", system.read("proc/meminfo") or "", re.MULTILINE)
    return {name: int(size) * 1024 for name, size in rows}


def swaps(text: str) -> dict[str, int]:
    """Bytes by file or device from /proc/swaps, whose sizes are kB."""
    rows = [line.split() for line in text.splitlines()[1:]]
    return {row[0]: int(row[2]) * 1024 for row in rows if len(row) >= 3 and row[2].isdigit()}


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
