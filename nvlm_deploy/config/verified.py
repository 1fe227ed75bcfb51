"""The result of `nvlm-build verify` in a bundle's manifest. Standard library only: the runtime reads it.

A result is tied to the files that it was measured on: it counts as none when one of them is another.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nvlm_deploy.config.manifest import MANIFEST_NAME, EngineManifest
from nvlm_deploy.errors import VerificationError

RESULT_KEY = "verify"


def files_digest(manifest: EngineManifest) -> str:
    """SHA-256 over the names and digests of a bundle's files."""
    lines = sorted(f"{entry.sha256} {entry.path}\n" for entry in manifest.files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_result(bundle: Path, manifest: EngineManifest, result: Mapping[str, Any]) -> EngineManifest:
    """Put a verification's result into the manifest of `bundle`; the old manifest or the new one is there.

    Everything else in the manifest, the files' digests included, stays as it is.
    """
    tied = {**result, "files_sha256": files_digest(manifest)}
    changed = replace(manifest, results={**manifest.results, RESULT_KEY: tied})
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=bundle) as work:
        changed.write(Path(work))
        new = Path(work) / MANIFEST_NAME
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.replace(bundle / MANIFEST_NAME)
    return changed


def require_passed(bundle: Path, manifest: EngineManifest) -> None:
    """Refuse a bundle that has not passed verification.

    Raises:
        VerificationError: it has not been verified, its files are others since, or it has failed.
    """
    result = manifest.results.get(RESULT_KEY)
    hint = f"nvlm-build verify {bundle} --against CHECKPOINT"
    if not isinstance(result, dict):
        raise VerificationError(f"{bundle} has not been verified", hint=hint)
    if result.get("files_sha256") != files_digest(manifest):
        raise VerificationError(f"{bundle} was verified with other files than it has now", hint=hint)
    if result.get("passed") is not True:
        failed = ", ".join(str(name) for name in result.get("failed", ()))
        raise VerificationError(
            f"{bundle} has not passed verification: {failed}",
            hint=f"{hint} --report report.html shows where it differs",
        )
