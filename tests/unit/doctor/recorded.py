"""A machine whose files and commands were written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

RECORDINGS = Path(__file__).resolve().parents[2] / "data" / "doctor"


@dataclass(frozen=True, slots=True)
class Recorded:
    """See `tests/data/doctor/*.txt`: sections that begin with `=== kind name`. `^` is a zero byte."""

    architecture: str
    python: str
    disk: int | None = None
    loads: tuple[str, ...] | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    commands: Mapping[str, str] = field(default_factory=dict)
    libraries: frozenset[str] = frozenset()
    installed: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, name: str) -> Recorded:
        """Read one recording."""
        machine = cls("", "")
        files, commands, installed = {}, {}, {}
        libraries = []
        for section in (RECORDINGS / f"{name}.txt").read_text().split("\n=== ")[1:]:
            head, _, body = section.partition("\n")
            kind, _, rest = head.partition(" ")
            if kind == "machine":
                architecture, python = rest.split()
                machine = replace(machine, architecture=architecture, python=python)
            elif kind == "disk":
                machine = replace(machine, disk=int(rest))
            elif kind == "providers":
                machine = replace(machine, loads=tuple(rest.split()))
            elif kind == "file":
                files[rest] = body.replace("^", "\0") + "\n"
            elif kind == "command":
                commands[rest] = body + "\n"
            elif kind == "library":
                libraries.append(rest)
            else:
                installed = dict(line.split() for line in body.splitlines())
        return replace(
            machine, files=files, commands=commands, installed=installed, libraries=frozenset(libraries)
        )

    def read(self, path: str) -> str | None:
        return self.files.get(path)

    def list(self, folder: str) -> Sequence[str]:
        below = [path.removeprefix(folder + "/") for path in self.files if path.startswith(folder + "/")]
        return sorted({path.split("/")[0] for path in below})

    def run(self, *command: str) -> str | None:
        return self.commands.get(" ".join(command))

    def packages(self) -> Mapping[str, str]:
        return self.installed

    def providers(self) -> Sequence[str] | None:
        return self.loads

    def has_library(self, name: str) -> bool:
        return name in self.libraries

    def free_disk(self) -> int | None:
        return self.disk
