from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nvlm_deploy.config.manifest import (
    FORMAT_VERSION,
    EngineManifest,
    FileEntry,
    PartSize,
    PromptSettings,
    TilerSettings,
    collect_files,
    sealed,
    verify_files,
)
from nvlm_deploy.errors import NvlmError, VerificationError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A directory with two files and the manifest that describes them."""
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "decoder.onnx").write_bytes(b"graph")
    (tmp_path / "config.json").write_text("{}")
    manifest = EngineManifest(
        format_version=FORMAT_VERSION,
        project_version="0.1.0",
        variant="D",
        backend="onnxruntime",
        recipe={"name": "int4-rtn", "weights": {"language": {"format": "int4"}}},
        target={"name": "cpu-x86"},
        checkpoint_fingerprint="f" * 64,
        quantization=None,
        tool_versions={"onnxruntime": "1.32.0"},
        context=4096,
        tiler=TilerSettings(112, 1, 6, True, 16),
        prompt=PromptSettings("hf", "<tile_global_thumbnail>"),
        vision={"inputs": ["tiles"]},
        llm={},
        sizes=(PartSize("vision", 200, 50, 190, 40),),
        files=collect_files(tmp_path),
        results={"build_s": 1.5},
    )
    manifest.write(tmp_path)
    return tmp_path


def edit(bundle: Path, change: Any) -> None:
    """Change the parsed manifest and write it again as its own writer would."""
    raw = json.loads((bundle / "manifest.json").read_text())
    del raw["manifest_sha256"], raw["manifest_copy"]
    change(raw)
    (bundle / "manifest.json").write_text(sealed(raw))


def test_what_is_written_is_read_again(bundle: Path) -> None:
    manifest = EngineManifest.read(bundle)
    assert manifest.tiler.tile_size == 112
    assert manifest.sizes == (PartSize("vision", 200, 50, 190, 40),)
    assert [entry.path for entry in manifest.files] == ["config.json", "llm/decoder.onnx"]
    (bundle / "again").mkdir()
    manifest.write(bundle / "again")
    assert (bundle / "again" / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()


def test_an_untouched_bundle_verifies(bundle: Path) -> None:
    verify_files(bundle)


def test_a_changed_byte_names_the_file_and_the_way_out(bundle: Path) -> None:
    (bundle / "llm" / "decoder.onnx").write_bytes(b"grapH")
    verify_files(bundle, digests=False)
    with pytest.raises(VerificationError, match=r"llm/decoder\.onnx has changed .* its SHA-256") as caught:
        verify_files(bundle)
    assert caught.value.hint is not None
    assert "nvlm-build engine CHECKPOINT --recipe int4-rtn --target cpu-x86" in caught.value.hint


def test_a_changed_size_and_a_missing_file_are_named(bundle: Path) -> None:
    (bundle / "llm" / "decoder.onnx").write_bytes(b"graph and more")
    with pytest.raises(VerificationError, match=r"llm/decoder\.onnx has changed .*: 14 bytes"):
        verify_files(bundle, digests=False)
    (bundle / "llm" / "decoder.onnx").unlink()
    with pytest.raises(VerificationError, match=r"llm/decoder\.onnx is missing"):
        verify_files(bundle)


@pytest.mark.parametrize("place", [5, 200, -75, -3])
def test_any_changed_byte_of_the_manifest_is_found(bundle: Path, place: int) -> None:
    data = bytearray((bundle / "manifest.json").read_bytes())
    data[place] ^= 1
    (bundle / "manifest.json").write_bytes(data)
    with pytest.raises(NvlmError):
        EngineManifest.read(bundle)


def test_a_changed_number_is_named_with_both_values_and_the_command(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"context": 4096', '"context": 8192'))
    with pytest.raises(VerificationError, match="context is 8192, and it was written as 4096") as caught:
        EngineManifest.read(bundle)
    assert "--recipe int4-rtn --target cpu-x86" in (caught.value.hint or "")


def test_several_changes_are_all_named(bundle: Path) -> None:
    path = bundle / "manifest.json"
    text = path.read_text().replace('"tile_size": 112', '"tile_size": 448').replace('"D"', '"X"')
    path.write_text(text)
    with pytest.raises(VerificationError, match=r'variant is "X".*"D"; tiler\.tile_size is 448.*112'):
        EngineManifest.read(bundle)


def test_a_spoiled_copy_is_no_way_round(bundle: Path) -> None:
    path = bundle / "manifest.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "manifest_copy": "AAAA"}))
    with pytest.raises(VerificationError, match='manifest_copy is "AAAA"'):
        EngineManifest.read(bundle)
    path.write_text(json.dumps({**raw, "manifest_sha256": "0" * 64}))
    with pytest.raises(VerificationError, match="manifest_sha256 is '0000"):
        EngineManifest.read(bundle)


def test_another_format_names_both_versions_and_the_command(bundle: Path) -> None:
    edit(bundle, lambda raw: raw.update(format_version=7, novelty=1))
    with pytest.raises(NvlmError, match="format_version is 7, and this nvlm-deploy reads 3") as caught:
        EngineManifest.read(bundle)
    assert caught.value.hint is not None
    assert "--recipe int4-rtn --target cpu-x86" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("context"), "the key 'context' is missing"),
        (lambda raw: raw.update(contexts=1), "the key 'contexts' is not known"),
        (lambda raw: raw.update(context="4096"), "context must be an integer, not '4096'"),
        (lambda raw: raw.update(context=True), "context must be an integer, not True"),
        (lambda raw: raw["tiler"].pop("max_tiles"), r"the key 'tiler\.max_tiles' is missing"),
        (lambda raw: raw["files"][1].update(size=1.5), r"files\.1\.size must be an integer"),
        (lambda raw: raw["files"][0].update(path="../../etc/passwd"), "lies outside the bundle"),
        (lambda raw: raw.update(files={}), "files must be a list"),
        (lambda raw: raw["prompt"].update(mode="hfm"), r"prompt\.mode is 'hfm'"),
        (lambda raw: raw["tool_versions"].update(onnx=1), r"tool_versions\.onnx must be a text"),
    ],
)
def test_the_reader_is_strict(bundle: Path, change: Any, message: str) -> None:
    edit(bundle, change)
    with pytest.raises(NvlmError, match=message):
        EngineManifest.read(bundle)


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(NvlmError, match="is no engine bundle"):
        EngineManifest.read(tmp_path)


def test_entries_are_values(bundle: Path) -> None:
    manifest = EngineManifest.read(bundle)
    entry = manifest.files[0]
    assert entry == FileEntry("config.json", 2, entry.sha256)
    assert replace(manifest, context=1).context == 1
