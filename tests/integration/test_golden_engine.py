"""The FP32 engine against what the published code computed: ids, tiles, tokens, logits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nvlm_deploy import Engine
from nvlm_deploy.cli.main import run


@pytest.fixture(scope="module")
def golden_engine(golden_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    bundle = tmp_path_factory.mktemp("golden") / "fp32"
    arguments = [
        "engine",
        str(golden_dir),
        "--recipe",
        "fp32",
        "--target",
        "cpu-x86",
        "-o",
        str(bundle),
        "--no-verify",
    ]
    assert run(arguments) == 0
    return Engine.open(bundle)


@pytest.mark.parametrize("index", range(10))
def test_golden_images(golden_dir: Path, golden_engine: Engine, index: int) -> None:
    sample = json.loads((golden_dir / "expected.json").read_text())["samples"][index]
    expected = np.load(golden_dir / f"expected_{index:02d}.npz")["logits_last"].ravel()
    result = golden_engine.generate(
        sample["question"],
        [golden_dir / "images" / sample["image"]],
        max_new_tokens=16,
        top_logits=len(expected),
    )
    assert list(result.images[0].crc32) == sample["tile_crc32"]
    assert list(result.input_ids) == sample["input_ids"]
    assert list(result.output_ids) == sample["greedy16"]
    logits = np.array([logit for _, logit in sorted(result.first_token_top)])
    # The bar is 2e-3; FP32 on another kernel library stays far below it.
    assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 1e-4


def test_golden_batch_of_all_images(golden_dir: Path, golden_engine: Engine) -> None:
    from nvlm_deploy.runtime import Request

    samples = json.loads((golden_dir / "expected.json").read_text())["samples"]
    requests = [
        Request(s["question"], [golden_dir / "images" / s["image"]], max_new_tokens=16) for s in samples
    ]
    results = golden_engine.generate_batch(requests)
    assert [list(result.output_ids) for result in results] == [sample["greedy16"] for sample in samples]
