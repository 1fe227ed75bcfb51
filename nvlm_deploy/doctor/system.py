"""What the doctor looks at: files, commands and packages of this machine. Nothing is changed or needs root.

Everything that is known of a machine comes through `System`, so that a recorded machine can stand in for one.
"""

from __future__ import annotations

import ctypes
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata, util
from pathlib import Path
from typing import Protocol

from nvlm_deploy.config.machine import host_architecture, run_command


class System(Protocol):
    """A machine."""

    @property
    def architecture(self) -> str:
        """As targets name it."""

    @property
    def python(self) -> str:
        """Version of the Python that runs this."""

    def read(self, path: str) -> str | None:
        """Text of a file, by its path below the root; None if it cannot be read."""

    def list(self, folder: str) -> Sequence[str]:
        """Names in a folder, sorted; none if there is no such folder."""

    def run(self, *command: str) -> str | None:
        """What a command prints on stdout; None if it is not there or fails."""

    def packages(self) -> Mapping[str, str]:
        """Versions of the installed Python packages, by their names in lower case with hyphens."""

    def providers(self) -> Sequence[str] | None:
        """What ONNX Runtime can run graphs with; None if it is not installed or does not load."""

    def has_library(self, name: str) -> bool:
        """Whether a shared library is found, such as `libnvinfer.so.10`."""

    def free_disk(self) -> int | None:
        """Bytes that are free where the command was started."""


@dataclass(frozen=True, slots=True)
class ThisMachine:
    """The machine that this process runs on; files are read below `root`."""

    root: Path = Path("/")
    architecture: str = field(default_factory=host_architecture)
    python: str = field(default_factory=platform.python_version)

    def read(self, path: str) -> str | None:
        """See `System.read`."""
        try:
            return (self.root / path).read_bytes().decode(errors="replace")
        except OSError:
            return None

    def list(self, folder: str) -> Sequence[str]:
        """See `System.list`."""
        try:
            return sorted(entry.name for entry in (self.root / folder).iterdir())
        except OSError:
            return []

    def run(self, *command: str) -> str | None:
        """See `System.run`."""
        return run_command(command)

    def packages(self) -> Mapping[str, str]:
        """See `System.packages`."""
        found: dict[str, str] = {}
        for distribution in metadata.distributions():
            # A folder whose removal was cut short has no name.
            name = distribution.metadata["Name"]
            if name:
                found.setdefault(normalized(name), distribution.version)
        return found

    def providers(self) -> Sequence[str] | None:
        """See `System.providers`."""
        if util.find_spec("onnxruntime") is None:
            return None
        try:
            from nvlm_deploy.backends.onnxruntime.library import available_providers
        except (ImportError, OSError):
            return None
        return available_providers()

    def has_library(self, name: str) -> bool:
        """See `System.has_library`."""
        try:
            ctypes.CDLL(name)
        except OSError:
            return False
        return True

    def free_disk(self) -> int | None:
        """See `System.free_disk`."""
        try:
            return shutil.disk_usage(Path.cwd()).free
        except OSError:
            return None


def normalized(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
