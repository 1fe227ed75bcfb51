"""`manifest.json` of an engine bundle: what it was made of, what is in it, and what was measured.

Everything that must agree when the bundle is opened is here. Standard library only: the runtime
reads it. Paths are relative to the bundle, and nothing names the machine that built it.

The manifest holds itself once more, compressed, so that a field that was changed can be named, with the
value that it had. That is no signature: who writes both can write anything that the bundle's other files
do not contradict.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from nvlm_deploy.config.mismatch import Mismatch, differences, refuse
from nvlm_deploy.config.strict_json import from_json, to_json
from nvlm_deploy.errors import NvlmError, VerificationError
from nvlm_deploy.progress import ProgressCallback, no_progress

FORMAT_VERSION = 3
MANIFEST_NAME = "manifest.json"

# Every other field stands in the graphs, too: these describe them, or come after them.
_SETTLED_LATER = ("format_version", "vision", "llm", "files", "results")
_COPY_KEY = "manifest_copy"
_DIGEST_KEY = "manifest_sha256"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the bundle; `path` is relative, with forward slashes; `size` in bytes."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PartSize:
    """Bytes of one part's weights in 16 bits, as released, and in the bundle.

    `linear_before` and `linear_after` count the matrices that a recipe is about, without norms and biases.
    """

    part: str
    before: int
    after: int
    linear_before: int
    linear_after: int


@dataclass(frozen=True, slots=True)
class TilerSettings:
    """The tile rule; `tile_size` is the side in pixels."""

    tile_size: int
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    visual_tokens_per_tile: int


@dataclass(frozen=True, slots=True)
class PromptSettings:
    """The prompt rule: how a prompt is tokenized, and the tag before a thumbnail."""

    mode: Literal["hf", "megatron"]
    thumbnail_tag: str


@dataclass(frozen=True, slots=True)
class EngineManifest:
    """The contents of `manifest.json`.

    `recipe` and `target` are resolved: as they were after every override. `checkpoint_fingerprint` is that
    of the released checkpoint, and `quantization` what was recorded when it was quantized; None for
    recipes that round while the engine is written. `context` is the most tokens that prompt and answer
    may have together. `vision` and `llm` describe the graphs' inputs and outputs in the backend's own
    words. `results` holds what was measured at build time.
    """

    format_version: int
    project_version: str
    variant: str
    backend: str
    recipe: dict[str, Any]
    target: dict[str, Any]
    checkpoint_fingerprint: str
    quantization: dict[str, Any] | None
    tool_versions: dict[str, str]
    context: int
    tiler: TilerSettings
    prompt: PromptSettings
    vision: dict[str, Any]
    llm: dict[str, Any]
    sizes: tuple[PartSize, ...]
    files: tuple[FileEntry, ...]
    results: dict[str, Any]

    @property
    def rebuild_command(self) -> str:
        """The command that makes such a bundle again."""
        return _rebuild_command(self.recipe.get("name"), self.target.get("name"))

    def record(self) -> dict[str, Any]:
        """What was settled before the graphs were written; they carry it, too (`GraphFacts.record`)."""
        fields = to_json(self)
        return {name: fields[name] for name in fields if name not in _SETTLED_LATER}

    def write(self, directory: Path) -> None:
        """Write `manifest.json` into `directory`, with its copy and its own digest as the last keys."""
        (directory / MANIFEST_NAME).write_bytes(sealed(to_json(self)).encode())

    @classmethod
    def read(cls, bundle: Path) -> EngineManifest:
        """Read the manifest of `bundle`.

        Raises:
            NvlmError: there is none, or it was written by a version whose format is another.
            VerificationError: it has changed since it was written; names every field, with both values.
        """
        path = bundle / MANIFEST_NAME
        raw, text = _read_json(path)
        version = raw.get("format_version")
        hint = "rebuild it: " + _rebuild_command_of(raw)
        if type(version) is not int or version != FORMAT_VERSION:
            raise NvlmError(
                f"{path}: format_version is {version!r}, and this nvlm-deploy reads {FORMAT_VERSION}",
                hint=hint,
            )
        digest, copy = raw.pop(_DIGEST_KEY, None), raw.pop(_COPY_KEY, None)
        refuse(_changed_fields(raw, copy), str(path), hint)
        blank = text.replace(digest, "0" * 64) if isinstance(digest, str) and len(digest) == 64 else ""
        if hashlib.sha256(blank.encode()).hexdigest() != digest:
            raise VerificationError(
                f"{path} has changed since it was written: {_DIGEST_KEY} is {digest!r}, and does not hold",
                hint=hint,
            )
        try:
            manifest = from_json(cls, raw, str(path))
            _check_paths(manifest.files, path)
        except NvlmError as error:
            raise NvlmError(error.message, hint=hint) from None
        return manifest


def sealed(raw: dict[str, Any]) -> str:
    """Return the text of `manifest.json` for its fields: with a copy of them, and the digest of the text."""
    packed = zlib.compress(json.dumps(raw, ensure_ascii=False, separators=(",", ":")).encode(), 9)
    seals = {_COPY_KEY: base64.b64encode(packed).decode(), _DIGEST_KEY: "0" * 64}
    text = json.dumps({**raw, **seals}, indent=2, ensure_ascii=False) + "\n"
    head, zeros, tail = text.rpartition("0" * 64)
    assert zeros, "the digest is the last value of the text above"
    return head + hashlib.sha256(text.encode()).hexdigest() + tail


def collect_files(directory: Path, progress: ProgressCallback = no_progress) -> tuple[FileEntry, ...]:
    """Return an entry for every file below `directory` but the manifest itself, sorted by path."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    paths = [path for path in paths if path != directory / MANIFEST_NAME]
    total = sum(path.stat().st_size for path in paths)
    entries, done = [], 0
    for path in paths:
        size = path.stat().st_size
        entries.append(FileEntry(path.relative_to(directory).as_posix(), size, file_sha256(path)))
        done += size
        progress("digests", done, total)
    return tuple(entries)


def verify_files(bundle: Path, manifest: EngineManifest | None = None, *, digests: bool = True) -> None:
    """Hold the files of `bundle` against its manifest; without `digests`, by size alone.

    Raises:
        VerificationError: a file is missing or has changed; the message names it.
    """
    manifest = manifest or EngineManifest.read(bundle)
    for index, entry in enumerate(manifest.files):
        problem = _difference(bundle / entry.path, entry, digests)
        if problem is not None:
            field, text = problem
            raise VerificationError(
                f"{bundle / entry.path} {text} (files.{index}.{field})",
                hint="rebuild the bundle: " + manifest.rebuild_command,
            )


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _difference(path: Path, entry: FileEntry, digests: bool) -> tuple[str, str] | None:
    """The field of `entry` that does not hold, and why."""
    if not path.is_file():
        return "path", "is missing from the bundle"
    size = path.stat().st_size
    if size != entry.size:
        return "size", f"has changed since it was built: {size:,} bytes, the manifest says {entry.size:,}"
    if not digests:
        return None
    digest = file_sha256(path)
    if digest == entry.sha256:
        return None
    changed = f"has changed since it was built: its SHA-256 is {digest}, the manifest says {entry.sha256}"
    return "sha256", changed


def _changed_fields(raw: dict[str, Any], copy: object) -> list[Mismatch]:
    """The fields of a manifest that are not as they were written."""
    try:
        packed = base64.b64decode(str(copy), validate=True)
        written = json.loads(zlib.decompress(packed))
    except (binascii.Error, zlib.error, ValueError):
        return [Mismatch(_COPY_KEY, copy, "it was written as", "the manifest once more")]
    return differences(raw, written, "it was written as")


def _read_json(path: Path) -> tuple[dict[str, Any], str]:
    try:
        text = path.read_bytes().decode("utf-8")
        raw = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise NvlmError(
            f"{path.parent} is no engine bundle: it has no {MANIFEST_NAME}",
            hint="build one: " + _rebuild_command(None, None),
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise VerificationError(
            f"{path} has changed since it was written: it is no valid JSON ({error})",
            hint="rebuild it: " + _rebuild_command(None, None),
        ) from None
    if not isinstance(raw, dict):
        raise NvlmError(f"{path} must hold a JSON object")
    return raw, text


def _check_paths(files: Iterable[FileEntry], source: Path) -> None:
    for entry in files:
        parts = PurePosixPath(entry.path).parts
        if not parts or entry.path.startswith("/") or ".." in parts:
            raise NvlmError(f"{source}: the file '{entry.path}' lies outside the bundle")


def _rebuild_command_of(raw: dict[str, Any]) -> str:
    sections = (raw.get("recipe"), raw.get("target"))
    return _rebuild_command(*(part.get("name") if isinstance(part, dict) else None for part in sections))


def _rebuild_command(recipe: object, target: object) -> str:
    return f"nvlm-build engine CHECKPOINT --recipe {recipe or 'NAME'} --target {target or 'NAME'} -o BUNDLE"
