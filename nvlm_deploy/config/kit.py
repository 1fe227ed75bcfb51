"""`kit.json` of a build kit: everything that an engine is compiled from on its device.

A kit is a bundle whose engines are still to be compiled. Standard library only. Paths are relative.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nvlm_deploy.config.manifest import EngineManifest, FileEntry, file_sha256
from nvlm_deploy.config.strict_json import from_json, to_json
from nvlm_deploy.errors import NvlmError, VerificationError
from nvlm_deploy.progress import ProgressCallback, no_progress

KIT_NAME = "kit.json"
KIT_VERSION = 1
_DIGEST_KEY = "kit_sha256"


@dataclass(frozen=True, slots=True)
class KitPart:
    """One part of the engine, and what its maker is told.

    maker: `tensorrt` compiles the graph `source` into the plan `output`; `tensorrt_llm` the checkpoint in
    the folder `source` into the engines of all ranks in the folder `output`.
    job: the maker's settings, in plain types.
    section: the manifest's section of this part, as far as it is known.
    """

    part: Literal["vision", "llm"]
    maker: Literal["tensorrt", "tensorrt_llm"]
    source: str
    output: str
    job: dict[str, Any]
    section: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BuildKit:
    """The contents of `kit.json`.

    bundle: the manifest that the bundle will have, but for its parts, files and results.
    probes: whether `probes/` has prompts to verify the engine with.
    """

    format_version: int
    bundle: EngineManifest
    parts: tuple[KitPart, ...]
    probes: bool
    files: tuple[FileEntry, ...]

    def part(self, name: str) -> KitPart:
        """The part `vision` or `llm`."""
        return next(part for part in self.parts if part.part == name)

    @property
    def digest(self) -> str:
        """SHA-256 of all that the kit says, its files' digests included."""
        return hashlib.sha256(json.dumps(to_json(self), sort_keys=True).encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Write `kit.json` into `directory`."""
        text = json.dumps({**to_json(self), _DIGEST_KEY: self.digest}, indent=2, ensure_ascii=False) + "\n"
        (directory / KIT_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> BuildKit:
        """Read the `kit.json` of `directory`.

        Raises:
            NvlmError: there is none, or another version wrote it.
            VerificationError: it has changed since it was written.
        """
        path = directory / KIT_NAME
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise NvlmError(
                f"{directory} is no build kit: it has no {KIT_NAME}",
                hint="write one: nvlm-build engine CHECKPOINT --recipe NAME --target NAME -o KIT",
            ) from None
        except ValueError as error:
            raise VerificationError(f"{path} is no valid JSON: {error}", hint=_WRITE_AGAIN) from None
        if not isinstance(raw, dict) or raw.get("format_version") != KIT_VERSION:
            raise NvlmError(f"{path} is of another version than {KIT_VERSION}", hint=_WRITE_AGAIN)
        digest = raw.pop(_DIGEST_KEY, None)
        kit = from_json(cls, raw, str(path))
        if kit.digest != digest:
            raise VerificationError(
                f"{path} has changed since it was written: its digest does not hold", hint=_WRITE_AGAIN
            )
        return kit


_WRITE_AGAIN = "write the kit again with nvlm-build engine"


def check_files(
    directory: Path,
    files: Iterable[FileEntry],
    progress: ProgressCallback = no_progress,
    *,
    digests: bool = True,
) -> None:
    """Hold the files of a kit against `kit.json`; without `digests`, by size alone.

    Raises:
        VerificationError: a file is missing or has changed; names it.
    """
    entries = list(files)
    done, total = 0, sum(entry.size for entry in entries)
    for entry in entries:
        path = directory / entry.path
        if not path.is_file():
            raise VerificationError(f"{path} is missing from the kit", hint="copy the kit again")
        size = path.stat().st_size
        changed = size != entry.size or (digests and file_sha256(path) != entry.sha256)
        if changed:
            raise VerificationError(
                f"{path} has changed since the kit was written ({size:,} bytes)", hint="copy the kit again"
            )
        done += size
        progress("digests", done, total)
