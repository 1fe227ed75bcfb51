"""What is special to a Jetson: JetPack, power mode, clocks, and memory that GPU and CPU share."""

from __future__ import annotations

import re
from collections.abc import Iterator

from nvlm_deploy.doctor.compatibility import JETPACK, JETPACK_GENERATION
from nvlm_deploy.doctor.facts import Facts
from nvlm_deploy.doctor.line import Line, error, ok, warning
from nvlm_deploy.doctor.resources import meminfo
from nvlm_deploy.doctor.system import System

_CLOCKS = "jetson_clocks"
_DEVFREQ = "sys/class/devfreq"
_LEAST_CMA_SHARE = 0.1


def jetson_lines(facts: Facts, system: System) -> Iterator[Line]:
    """Nothing on other machines."""
    if facts.l4t is None:
        return
    yield _jetpack(facts.l4t, facts.debian.get("nvidia-jetpack"))
    yield _power(system)
    yield _clocks(system)
    yield _cma(system)


def _jetpack(l4t: str, package: str | None) -> Line:
    generation = JETPACK_GENERATION.get(int(l4t.split(".")[0]))
    known = package.split("-")[0].split("+")[0] if package else JETPACK.get(l4t)
    found = f"JetPack {known or generation or 'unknown'}, Jetson Linux {l4t}"
    if generation == "5":
        return error(
            "jetpack", found, "its TensorRT 8.5 is too old for these graphs: flash JetPack 6.1 or newer"
        )
    if generation is None:
        return warning("jetpack", found, "not known here: 6.1 and newer are")
    if package is None:
        return warning("jetpack", found, "CUDA and TensorRT are missing: sudo apt install nvidia-jetpack")
    return ok("jetpack", found)


def _power(system: System) -> Line:
    mode = parse_nvpmodel(system.run("nvpmodel", "-q") or "")
    if mode is None:
        return warning("nvpmodel", "does not answer", "sudo nvpmodel -q shows the power mode")
    if mode.startswith("MAXN"):
        return ok("nvpmodel", mode)
    number = most_power(system.read("etc/nvpmodel.conf") or "")
    return warning("nvpmodel", mode, f"not all of the GPU: sudo nvpmodel -m {number if number else 0}")


def _clocks(system: System) -> Line:
    ranges = parse_clocks(system.run(_CLOCKS, "--show") or "") or _gpu_range(system)
    if ranges is None:
        return warning(_CLOCKS, "the GPU's clock is not shown", f"sudo {_CLOCKS} --show")
    least, most = ranges
    found = f"GPU {least / 1e6:.0f} to {most / 1e6:.0f} MHz"
    if least < most:
        return warning(_CLOCKS, found, f"clocks follow the load: sudo {_CLOCKS} before anything is measured")
    return ok(_CLOCKS, found)


def _gpu_range(system: System) -> tuple[int, int] | None:
    for name in system.list(_DEVFREQ):
        if name.endswith((".gpu", ".ga10b", ".gv11b")):
            limits = [system.read(f"{_DEVFREQ}/{name}/{kind}_freq") for kind in ("min", "max")]
            if all(limit and limit.strip().isdigit() for limit in limits):
                return int(limits[0] or 0), int(limits[1] or 0)
    return None


def _cma(system: System) -> Line:
    sizes = meminfo(system)
    total, free = sizes.get("CmaTotal", 0), sizes.get("CmaFree", 0)
    found = f"{free >> 20} of {total >> 20} MiB free"
    if total and free < total * _LEAST_CMA_SHARE:
        advice = "large buffers may fail: restart, or add cma=512M to APPEND in /boot/extlinux/extlinux.conf"
        return warning("cma", found, advice)
    return ok("cma", found)


def parse_nvpmodel(text: str) -> str | None:
    """The mode's name from `nvpmodel -q`: `NV Power Mode: MAXN`."""
    found = re.search(r"NV Power Mode:\s*(\S+)", text)
    return found[1] if found else None


def most_power(config: str) -> str | None:
    """The number of the mode without limits in nvpmodel.conf: `< POWER_MODEL ID=0 NAME=MAXN >`."""
    found = re.search(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=MAXN\w*\s*>", config)
    return found[1] if found else None


def parse_clocks(text: str) -> tuple[int, int] | None:
    """Least and most Hz of the GPU from `jetson_clocks --show`."""
    found = re.search(r"^GPU\s+MinFreq=(\d+)\s+MaxFreq=(\d+)", text, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None
