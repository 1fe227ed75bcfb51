"""A verification's result in the manifest, and who is let through."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from nvlm_deploy.config.manifest import EngineManifest, collect_files, verify_files
from nvlm_deploy.config.verified import require_passed, write_result
from nvlm_deploy.errors import VerificationError


@pytest.fixture
def bundle(fp32_bundle: Path, tmp_path: Path) -> Path:
    """A copy of an engine that has not been verified."""
    return Path(shutil.copytree(fp32_bundle, tmp_path / "bundle"))


def test_a_result_changes_nothing_else(bundle: Path) -> None:
    before = EngineManifest.read(bundle)
    write_result(bundle, before, {"passed": True, "failed": [], "figures": {"kl": {"figure": "inf"}}})
    after = EngineManifest.read(bundle)
    assert replace(after, results=before.results) == before
    assert after.results["verify"]["figures"] == {"kl": {"figure": "inf"}}
    assert collect_files(bundle) == before.files
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
    (bundle / "config.json").write_bytes(b"other")
    with pytest.raises(VerificationError, match="was verified with other files"):
        require_passed(bundle, replace(passed, files=collect_files(bundle)))


def test_a_result_is_json(bundle: Path) -> None:
    write_result(bundle, EngineManifest.read(bundle), {"passed": True, "failed": []})
    assert json.loads((bundle / "manifest.json").read_text())["results"]["verify"]["passed"] is True
