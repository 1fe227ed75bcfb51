"""What a build really took, beside what was predicted."""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nvlm_deploy.config.manifest import FileEntry
from nvlm_deploy.planner import DevicePlan

PREDICTION_KEY = "prediction"

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


class BuildMeter:
    """Seconds and peak memory of this process since the meter was made.

    The peak is that of the whole life of the process where Linux's /proc is missing.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()
        try:
            _CLEAR.write_text("5", encoding="ascii")  # sets the peak to the present
        except OSError:
            self._since_start = False
        else:
            self._since_start = True

    def seconds(self) -> float:
        """Wall clock since the start."""
        return time.perf_counter() - self._start

    def peak_bytes(self) -> int:
        """Largest resident set since the start."""
        if self._since_start:
            found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"))
            if found:
                return int(found.group(1)) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prediction_and_measurement(
    plan: DevicePlan, files: Iterable[FileEntry], meter: BuildMeter
) -> dict[str, dict[str, float | None]]:
    """The section `prediction` of a manifest's results: predicted and measured, side by side.

    Files in bytes by folder, peak memory of the build on this machine in bytes, its duration in seconds; a
    figure that is not predicted is None. The manifest itself, which is not written yet, is not counted.
    """
    sizes = {"vision": 0, "llm": 0, "other": 0}
    for entry in files:
        folder = entry.path.partition("/")[0]
        sizes[folder if folder in ("vision", "llm") else "other"] += entry.size
    predicted = plan.files.to_dict()
    figures: dict[str, tuple[float | None, float]] = {
        f"{name}_bytes": (predicted[name], size) for name, size in sizes.items()
    }
    figures["disk_bytes"] = (plan.files.total, sum(sizes.values()))
    figures["build_host_bytes"] = (plan.build.host_bytes, meter.peak_bytes())
    figures["build_s"] = (None, round(meter.seconds(), 3))
    return {key: pair(*figure) for key, figure in figures.items()}


def pair(predicted: float | None, measured: float) -> dict[str, Any]:
    """A prediction, what was measured, and how many times as much that is."""
    ratio = round(measured / predicted, 4) if predicted else None
    return {"predicted": predicted, "measured": measured, "measured_to_predicted": ratio}
