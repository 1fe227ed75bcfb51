"""This machine, as far as compiled engines depend on it. Standard library only: the runtime uses it."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

# Names in manifests, and the distributions that bring them; the first that is installed counts.
DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-qnn", "onnxruntime-openvino"),
    "tensorrt": (
        "tensorrt",
        "tensorrt-cu13",
        "tensorrt-cu12",
        "tensorrt_cu13_bindings",
        "tensorrt_cu12_bindings",
    ),
    "tensorrt_llm": ("tensorrt-llm",),
    "tensorrt_rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
}
# Jetsons are named by their chip; its GPU's compute capability stands in NVIDIA's table of GPUs.
TEGRA_SM = {"nvidia,tegra194": 72, "nvidia,tegra234": 87, "nvidia,tegra264": 110}
_DEVICE_TREE = Path("proc/device-tree/compatible")
_QUERY = ("nvidia-smi", "--query-gpu=compute_cap,driver_version", "--format=csv,noheader")
_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Machine:
    """What compiled engines depend on.

    sm: compute capability of the first GPU, 87 for 8.7. cuda: the newest that the driver runs. versions: of
    engine makers, by their names in manifests.
    """

    architecture: str
    sm: int | None = None
    driver: str | None = None
    cuda: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls) -> Machine:
        """Look at this machine; what cannot be found out is None."""
        rows = parse_gpu_query(run_command(_QUERY) or "")
        sm, driver = rows[0] if rows else (None, None)
        found = {name: installed_version(name) for name in DISTRIBUTIONS}
        versions = {name: version for name, version in found.items() if version is not None}
        cuda = parse_driver_cuda(run_command(("nvidia-smi",)) or "")
        return cls(host_architecture(), sm or tegra_sm(Path("/")), driver, cuda, versions)


def host_architecture() -> str:
    """Return this machine's architecture in the names that targets use."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, or of the first that brings the package of that name."""
    for distribution in DISTRIBUTIONS.get(name, (name,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None


def tool_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of the Python and of those packages of `names` that are installed."""
    found = {name: installed_version(name) for name in names}
    return {"python": platform.python_version(), **{name: v for name, v in found.items() if v is not None}}


def run_command(command: tuple[str, ...]) -> str | None:
    """Return what a command prints on stdout; None if it is not there, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def parse_gpu_query(text: str) -> list[tuple[int | None, str | None]]:
    """Compute capability and driver of every GPU from nvidia-smi's `compute_cap,driver_version` as CSV."""
    rows: list[tuple[int | None, str | None]] = []
    for line in text.splitlines():
        capability, _, driver = (part.strip() for part in line.partition(","))
        number = re.fullmatch(r"(\d+)\.(\d)", capability)
        rows.append((int(number[1] + number[2]) if number else None, driver or None))
    return rows


def parse_driver_cuda(text: str) -> str | None:
    """The newest CUDA that the driver runs, from the frame that nvidia-smi prints."""
    found = re.search(r"CUDA Version:\s*(\d+\.\d+)", text)
    return found[1] if found else None


def tegra_sm(root: Path) -> int | None:
    """Compute capability of a Jetson's GPU, from its device tree below `root`."""
    try:
        names = (root / _DEVICE_TREE).read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return None
    return next((TEGRA_SM[name] for name in names if name in TEGRA_SM), None)
