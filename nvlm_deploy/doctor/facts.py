"""What is known of a machine before anything is judged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nvlm_deploy.config.machine import DISTRIBUTIONS, TEGRA_SM, parse_driver_cuda
from nvlm_deploy.doctor.system import System, normalized

_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader")
# JetPack's TensorRT comes as Debian packages.
_DPKG = (
    "dpkg-query",
    "-W",
    "-f=${Package} ${Version}\\n",
    "libnvinfer*",
    "nvidia-jetpack",
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """memory: MiB; None where it is shared with the CPU, or not told."""

    name: str
    sm: int | None
    memory: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """versions: of Python packages and, for `tensorrt`, of the system's, by the names in manifests.

    driver_cuda: the newest CUDA that the driver runs. toolkit: the installed CUDA toolkit. l4t: release of
    Jetson Linux, such as `36.4.3`; None on other machines.
    """

    architecture: str
    python: str
    gpus: tuple[Gpu, ...]
    driver: str | None
    driver_cuda: str | None
    toolkit: str | None
    l4t: str | None
    packages: Mapping[str, str]
    debian: Mapping[str, str]

    @property
    def jetson(self) -> bool:
        """Whether this is a Jetson: GPU and CPU share one memory, and software comes with JetPack."""
        return self.l4t is not None

    @property
    def sm(self) -> int | None:
        """Compute capability of the first GPU."""
        return self.gpus[0].sm if self.gpus else None

    def version(self, name: str) -> str | None:
        """Version of a package, or of the first that brings the module of that name."""
        names = [normalized(candidate) for candidate in DISTRIBUTIONS.get(name, (name,))]
        return next((self.packages[candidate] for candidate in names if candidate in self.packages), None)

    @property
    def tensorrt(self) -> str | None:
        """TensorRT of the system or of this Python."""
        libraries = sorted(name for name in self.debian if name.startswith("libnvinfer"))
        own = self.debian[libraries[0]].split("-")[0] if libraries else None
        return self.version("tensorrt") or own


def gather(system: System) -> Facts:
    """Look at `system`."""
    gpus, driver = _gpus(system)
    l4t = parse_l4t(system.read("etc/nv_tegra_release") or "")
    if not gpus and l4t is not None:
        gpus = _tegra(system)
    return Facts(
        architecture=system.architecture,
        python=system.python,
        gpus=gpus,
        driver=driver,
        driver_cuda=parse_driver_cuda(system.run("nvidia-smi") or ""),
        toolkit=_toolkit(system),
        l4t=l4t,
        packages=system.packages(),
        debian=_debian(system.run(*_DPKG) or ""),
    )


def parse_l4t(text: str) -> str | None:
    """The release from /etc/nv_tegra_release: `# R36 (release), REVISION: 4.3, ...` is 36.4.3."""
    found = re.search(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else None


def _gpus(system: System) -> tuple[tuple[Gpu, ...], str | None]:
    gpus, driver = [], None
    for line in (system.run(*_QUERY) or "").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != 4:
            continue
        name, capability, memory, driver = cells
        number = re.fullmatch(r"(\d+)\.(\d)", capability)
        size = re.match(r"(\d+) MiB", memory)
        sm = int(number[1] + number[2]) if number else _tegra_sm(system)
        gpus.append(Gpu(name, sm, int(size[1]) if size else None))
    return tuple(gpus), driver


def _tegra(system: System) -> tuple[Gpu, ...]:
    name = (system.read("proc/device-tree/model") or "Jetson").strip("\0\n ")
    return (Gpu(name, _tegra_sm(system), None),)


def _tegra_sm(system: System) -> int | None:
    chips = (system.read("proc/device-tree/compatible") or "").strip().split("\0")
    return next((TEGRA_SM[chip] for chip in chips if chip in TEGRA_SM), None)


def _toolkit(system: System) -> str | None:
    text = system.run("nvcc", "--version") or system.read("usr/local/cuda/version.json") or ""
    found = re.search(r"release (\d+\.\d+)|\"cuda\"\s*:\s*\{[^}]*\"version\"\s*:\s*\"(\d+\.\d+)", text)
    return (found[1] or found[2]) if found else None


def _debian(text: str) -> dict[str, str]:
    rows = [line.split() for line in text.splitlines()]
    # Packages that were removed are listed without a version.
    return {row[0]: row[1] for row in rows if len(row) == 2}
