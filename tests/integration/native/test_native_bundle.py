"""Bundles that have changed are refused natively, too, and the field is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from nvlm_deploy.config.manifest import MANIFEST_NAME, sealed

Cli = Callable[..., CompletedProcess[str]]


def changed(manifest: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """The manifest with another value in a field such as `files.0.size`."""
    twin: Any = copy.deepcopy(manifest)
    *path, last = [int(name) if name.isdigit() else name for name in field.split(".")]
    inner = twin
    for name in path:
        inner = inner[name]
    inner[last] = value
    changed_twin: dict[str, Any] = twin
    return changed_twin


def refused(cli: Cli, bundle: Path, codes: tuple[int, ...]) -> str:
    done = cli(bundle, "--prompt", "x")
    assert done.returncode in codes, done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.fixture
def manifest(bundle: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((bundle / MANIFEST_NAME).read_text())
    return raw


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("context", 17),
        ("recipe.name", "another"),
        ("tiler.max_tiles", 12),
        ("tiler.use_thumbnail", False),
        ("sizes.0.after", 1.5),
        ("quantization", {}),
        ("llm.kv_cache.layers", 3),
    ],
)
def test_a_change_is_seen(
    native_cli: Cli, bundle: Path, manifest: dict[str, Any], field: str, value: Any
) -> None:
    (bundle / MANIFEST_NAME).write_text(json.dumps(changed(manifest, field, value)))
    text = refused(native_cli, bundle, (4,))
    assert f"{field} is {json.dumps(value)}, and it was written as " in text
    assert "hint: rebuild it: nvlm-build engine CHECKPOINT --recipe" in text


@pytest.mark.parametrize(
    ("field", "value", "codes"),
    [
        ("format_version", 2, (1,)),
        ("context", 17, (4,)),
        ("variant", "X", (4,)),
        ("backend", "tensorrt", (4,)),
        ("recipe.name", "another", (4,)),
        ("checkpoint_fingerprint", "0", (4,)),
        ("tiler.tile_size", 448, (4,)),
        ("tiler.max_tiles", 12, (4,)),
        ("tiler.use_thumbnail", False, (4,)),
        ("prompt.thumbnail_tag", "<tile>", (4,)),
        ("vision.hidden_size", 7, (4,)),
        ("vision.model", "vision/other.onnx", (4,)),
        ("vision.inputs.tiles.dtype", "float32", (4,)),
        ("llm.vocab_size", 7, (4,)),
        ("llm.kv_cache.layers", 3, (4,)),
        ("files.0.size", 7, (4,)),
        ("files.0.sha256", "0" * 64, (4,)),
        ("files.0.path", "../config.json", (1,)),
        ("files.0.path", "other.json", (4,)),
    ],
)
def test_a_field_that_other_files_contradict(
    native_cli: Cli, bundle: Path, manifest: dict[str, Any], field: str, value: Any, codes: tuple[int, ...]
) -> None:
    """The manifest's own seal holds."""
    twin = changed(manifest, field, value)
    del twin["manifest_copy"], twin["manifest_sha256"]
    (bundle / MANIFEST_NAME).write_text(sealed(twin))
    text = refused(native_cli, bundle, codes)
    assert field in text or str(value) in text
    assert "hint: rebuild" in text


def test_files_that_changed(native_cli: Cli, bundle: Path) -> None:
    model = bundle / "llm" / "decoder.onnx.data"
    data = bytearray(model.read_bytes())
    data[1000] ^= 1
    model.write_bytes(data)
    assert f"{model} has changed since it was built: its SHA-256 is " in refused(native_cli, bundle, (4,))
    model.write_bytes(data[:-1])
    assert f"{model} has changed since it was built: {len(data) - 1:,} bytes" in refused(
        native_cli, bundle, (4,)
    )
    model.unlink()
    assert f"{model} is missing from the bundle" in refused(native_cli, bundle, (4,))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "[" * 100_000, '{"format_version": 3}', "\xff"])
def test_no_manifest_at_all(native_cli: Cli, bundle: Path, text: str) -> None:
    (bundle / MANIFEST_NAME).write_text(text)
    assert refused(native_cli, bundle, (1, 4)).startswith("error: ")
