"""Stage: a compiled bundle, held against the probes of its kit on its device."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import ValidationError

import nvlm_deploy
from nvlm_deploy.backends.protocol import InflightSession, SessionOptions
from nvlm_deploy.config.kit import BuildKit, check_files
from nvlm_deploy.config.manifest import MANIFEST_NAME
from nvlm_deploy.config.recipe import Recipe
from nvlm_deploy.config.target import Target
from nvlm_deploy.config.thresholds import VerifyThresholds
from nvlm_deploy.config.validation import explain
from nvlm_deploy.config.verified import write_result
from nvlm_deploy.errors import UsageError
from nvlm_deploy.runtime.bundle import Bundle, open_engine
from nvlm_deploy.verify.compare import Reaction
from nvlm_deploy.verify.probe_checks import (
    Chooser,
    check_probes,
    inflight_chooser,
    prepare_probe,
    stepwise_chooser,
)
from nvlm_deploy.verify.probes import ProbeSet
from nvlm_deploy.verify.report import VerifyReport

PROBES_FOLDER = "probes"
_NO_REACTION = Reaction(0, None, None, 0, 0)


def verify_with_kit(bundle: Path, kit_directory: Path) -> VerifyReport:
    """Hold a compiled bundle against the probes of its kit; its manifest gets the result.

    Raises:
        UsageError: the bundle was compiled from another kit, or the kit has no probes.
        NvlmError: one of them is not in order, or the engine cannot be opened.
    """
    began = time.perf_counter()
    kit = BuildKit.read(kit_directory)
    opened = Bundle.open(bundle)
    _check_pair(opened, kit, kit_directory)
    inside = [entry for entry in kit.files if entry.path.startswith(f"{PROBES_FOLDER}/")]
    check_files(kit_directory, inside)
    folder = kit_directory / PROBES_FOLDER
    probes = ProbeSet.read(folder)
    prepared = [prepare_probe(folder, probe, opened.tokenizer, opened.config) for probe in probes.probes]
    vision, decoder = open_engine(opened, SessionOptions(device="cuda"))
    choose: Chooser
    if isinstance(decoder, InflightSession):
        choose = inflight_chooser(decoder, opened.tokenizer.eos_id)
    else:
        choose = stepwise_chooser(decoder)
    checks = check_probes(folder, probes, prepared, vision, choose, *_limits(opened))
    manifest = opened.manifest
    report = VerifyReport(
        subject=str(bundle),
        against=str(kit_directory),
        kind="engine",
        recipe=str(manifest.recipe.get("name")),
        target=str(manifest.target.get("name")),
        checkpoint_fingerprint=manifest.checkpoint_fingerprint,
        versions={"nvlm-deploy": nvlm_deploy.__version__, **manifest.tool_versions},
        seconds=time.perf_counter() - began,
        checks=tuple(checks),
        weights=(),
        layers=(),
        tasks=(),
        reaction=_NO_REACTION,
        examples=(),
    )
    write_result(bundle, manifest, report.summary())
    return report


def _check_pair(opened: Bundle, kit: BuildKit, directory: Path) -> None:
    if not kit.probes:
        raise UsageError(
            f"{directory} has no probes", hint="write the kit without --no-verify, or give the checkpoint"
        )
    ours, theirs = opened.manifest.checkpoint_fingerprint, kit.bundle.checkpoint_fingerprint
    if ours != theirs or opened.manifest.recipe != kit.bundle.recipe:
        raise UsageError(
            f"{opened.directory} was not compiled from {directory}",
            hint="give the kit that it was compiled from",
        )


def _limits(opened: Bundle) -> tuple[VerifyThresholds, float]:
    """The recipe's limits, and what the target's arithmetic leaves of visual tokens."""
    manifest, source = opened.manifest, opened.directory / MANIFEST_NAME
    try:
        limits = Recipe.model_validate(manifest.recipe).verify
        target = Target.model_validate(manifest.target)
    except ValidationError as error:
        raise explain(error, Recipe, str(source)) from None
    return limits, target.tolerances.vision_cosine
