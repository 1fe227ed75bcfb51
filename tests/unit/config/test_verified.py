"""A verification's result in the manifest, and who is let through."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nvlm_deploy.config.manifest import (
    FORMAT_VERSION,
    EngineManifest,
    PromptSettings,
    TilerSettings,
    collect_files,
    verify_files,
)
from nvlm_deploy.config.verified import require_passed, write_result
from nvlm_deploy.errors import VerificationError


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "decoder.onnx").write_bytes(b"graph")
    EngineManifest(
        format_version=FORMAT_VERSION,
        project_version="0.1.0",
        variant="D",
        backend="onnxruntime",
        recipe={"name": "int8"},
        target={"name": "cpu-x86"},
        checkpoint_fingerprint="f" * 64,
        quantization=None,
        tool_versions={},
        context=4096,
        tiler=TilerSettings(112, 1, 6, True, 16),
        prompt=PromptSettings("hf", "<tile_global_thumbnail>"),
        vision={},
        llm={},
        sizes=(),
        files=collect_files(tmp_path),
        results={"build_s": 1.5},
    ).write(tmp_path)
    return tmp_path


def test_a_result_changes_nothing_else(bundle: Path) -> None:
    before = EngineManifest.read(bundle)
    write_result(bundle, before, {"passed": True, "failed": [], "figures": {"kl": {"figure": "inf"}}})
    after = EngineManifest.read(bundle)
    assert replace(after, results=before.results) == before
    assert after.results["build_s"] == 1.5
    assert after.results["verify"]["figures"] == {"kl": {"figure": "inf"}}
    assert sorted(path.name for path in bundle.iterdir()) == ["decoder.onnx", "manifest.json"]
    verify_files(bundle)
    require_passed(bundle, after)


def test_a_bundle_that_was_never_verified_is_refused(bundle: Path) -> None:
    with pytest.raises(VerificationError, match="has not been verified") as caught:
        require_passed(bundle, EngineManifest.read(bundle))
    assert caught.value.hint == f"nvlm-build verify {bundle} --against CHECKPOINT"


def test_a_failed_result_names_what_failed(bundle: Path) -> None:
    failed = write_result(bundle, EngineManifest.read(bundle), {"passed": False, "failed": ["tiles", "kl"]})
    with pytest.raises(VerificationError, match="has not passed verification: tiles, kl"):
        require_passed(bundle, failed)


def test_a_result_does_not_hold_for_other_files(bundle: Path) -> None:
    passed = write_result(bundle, EngineManifest.read(bundle), {"passed": True, "failed": []})
    (bundle / "decoder.onnx").write_bytes(b"other")
    with pytest.raises(VerificationError, match="was verified with other files"):
        require_passed(bundle, replace(passed, files=collect_files(bundle)))


def test_a_result_is_json(bundle: Path) -> None:
    write_result(bundle, EngineManifest.read(bundle), {"passed": True, "failed": []})
    assert json.loads((bundle / "manifest.json").read_text())["results"]["verify"]["passed"] is True
