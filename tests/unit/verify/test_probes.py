"""Probes: written from the reference, asked of an engine; a sound one passes and faults are found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nvlm_deploy.backends.protocol import Float32, SessionOptions
from nvlm_deploy.config.thresholds import VerifyThresholds, default_thresholds
from nvlm_deploy.pipeline.kit_probes import make_probes
from nvlm_deploy.progress import no_progress
from nvlm_deploy.runtime.bundle import Bundle, open_sessions
from nvlm_deploy.verify.checks import Check
from nvlm_deploy.verify.probe_checks import (
    Chooser,
    Chosen,
    ProbeInput,
    check_probes,
    prepare_probe,
    stepwise_chooser,
)
from nvlm_deploy.verify.probes import PROBES_NAME, ProbeSet

LIMITS = VerifyThresholds.model_validate(default_thresholds(16, 16))


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("probes") / "probes"
    make_probes(directory, tiny_checkpoint, "cpu", no_progress)
    return directory


@pytest.fixture(scope="module")
def opened(fp32_bundle: Path) -> Bundle:
    return Bundle.open(fp32_bundle)


class Sessions:
    def __init__(self, opened: Bundle) -> None:
        self.vision, decoder = open_sessions(opened, SessionOptions(threads=1))
        self.choose = stepwise_chooser(decoder)


@pytest.fixture(scope="module")
def sessions(opened: Bundle) -> Sessions:
    return Sessions(opened)


def ask(
    folder: Path, opened: Bundle, vision: object, choose: Chooser, probes: ProbeSet | None = None
) -> dict[str, Check]:
    probes = probes or ProbeSet.read(folder)
    prepared = [prepare_probe(folder, probe, opened.tokenizer, opened.config) for probe in probes.probes]
    checks = check_probes(folder, probes, prepared, vision, choose, LIMITS, 0.999)  # type: ignore[arg-type]
    return {check.name.split(",")[0]: check for check in checks}


def test_the_files_of_probes(folder: Path) -> None:
    probes = ProbeSet.read(folder)
    assert len(probes.probes) == 7
    with_image = [probe for probe in probes.probes if probe.image]
    assert len(with_image) == 5
    for probe in with_image:
        assert probe.visual_tokens is not None
        stored = np.load(folder / probe.visual_tokens)
        assert len(stored) == len(probe.visual_tiles) == min(2, len(probe.tile_crc32))
    for probe in probes.probes:
        positions = [token.position for token in probe.tokens]
        assert positions[0] == probe.prompt_length - 1
        assert positions[-1] == len(probe.input_ids) - 1
        best = probe.tokens[0].top
        assert [each.log_prob for each in best] == sorted((each.log_prob for each in best), reverse=True)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        PROBES_NAME,
        *(f"0{i}.png" for i in range(5)),
        *(f"0{i}.visual_tokens.npy" for i in range(5)),
    }


def test_a_sound_engine_passes(folder: Path, opened: Bundle, sessions: Sessions) -> None:
    checks = ask(folder, opened, sessions.vision, sessions.choose)
    assert len(checks) == 4
    assert [check.sentence() for check in checks.values() if not check.passed] == []
    figures = {name: check.figure for name, check in checks.items()}
    assert figures["next tokens"] == 1.0
    assert figures["log-probability of the chosen token"] == pytest.approx(0, abs=1e-3)


class WrongVision:
    """Tiles in the wrong order."""

    def __init__(self, sessions: Sessions) -> None:
        self._vision = sessions.vision

    def encode(self, tiles: NDArray[np.uint8]) -> Float32:
        return self._vision.encode(tiles)[::-1].copy()


def test_tiles_in_another_order_are_found(folder: Path, opened: Bundle, sessions: Sessions) -> None:
    checks = ask(folder, opened, WrongVision(sessions), sessions.choose)
    assert not checks["visual tokens"].passed


def test_a_wrong_token_is_found(folder: Path, opened: Bundle, sessions: Sessions) -> None:
    def choose(given: ProbeInput, tokens: Float32 | None, positions: Sequence[int]) -> list[Chosen]:
        found = sessions.choose(given, tokens, positions)
        return [Chosen(0, None), *found[1:]]

    checks = ask(folder, opened, sessions.vision, choose)
    assert not checks["next tokens"].passed


def test_other_token_ids_are_found_before_anything_is_computed(
    folder: Path, opened: Bundle, sessions: Sessions
) -> None:
    def fail(given: ProbeInput, tokens: Float32 | None, positions: Sequence[int]) -> list[Chosen]:
        raise AssertionError("nothing is asked of an engine whose inputs are others")

    probes = ProbeSet.read(folder)
    changed = replace(probes.probes[0], question="Something else?")
    asked = replace(probes, probes=(changed, *probes.probes[1:]))
    checks = ask(folder, opened, sessions.vision, fail, asked)
    check = checks["token ids and tiles"]
    assert not check.passed
    assert changed.label in check.place


def test_damaged_probes_are_named(folder: Path, tmp_path: Path) -> None:
    raw = json.loads((folder / PROBES_NAME).read_text())
    del raw["probes"][0]["question"]
    (tmp_path / PROBES_NAME).write_text(json.dumps(raw))
    with pytest.raises(Exception, match=r"probes\.0\.question"):
        ProbeSet.read(tmp_path)
