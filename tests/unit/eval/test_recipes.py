"""Comparing recipes: rows over seeds, the front of bytes and divergence, logits, results that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nvlm_deploy.backends import SessionOptions
from nvlm_deploy.cli.frame import run_program
from nvlm_deploy.cli.main import EVAL
from nvlm_deploy.eval.agreement import agreement
from nvlm_deploy.eval.forced import engine_logits, image_prompt, model_logits, text_prompt
from nvlm_deploy.eval.recipes import pareto, summarize
from nvlm_deploy.models import load_model
from nvlm_deploy.pipeline.engine import build_engine_bundle
from nvlm_deploy.pipeline.plan import BuildRequest, plan_engine
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.runtime.bundle import Bundle
from nvlm_deploy.synthetic.documents import document

Compare = Callable[..., int]


def trial(recipe: str, seed: int | None, exact: float, kl: float, nbytes: int) -> dict[str, Any]:
    both = {"kl": kl, "top1": 1.0}
    calibration = None if seed is None else "documents"
    named = {"recipe": recipe, "calibration": calibration, "seed": seed}
    return {**named, "exact_match": exact, "image": both, "text": both, "bytes": nbytes, "ms": 1.0}


def test_rows_are_means_over_seeds() -> None:
    trials = [trial("fp32", None, 1.0, 0.0, 90), trial("a/b.yaml", 0, 0.9, 0.2, 30)]
    rows = summarize([*trials, trial("a/b.yaml", 1, 0.7, 0.4, 30)])
    assert [(row.recipe, row.trials) for row in rows] == [("fp32", 1), ("b", 2)]
    assert rows[1].exact_match == pytest.approx(0.8)
    assert rows[1].worst == 0.7
    assert rows[1].image_kl == pytest.approx(0.3)


def test_the_front_has_no_row_that_another_beats() -> None:
    figures = {
        "large": (90, 0.0),
        "small": (20, 0.5),
        "beaten": (30, 0.6),
        "middle": (40, 0.1),
        "tie": (40, 0.2),
    }
    rows = summarize([trial(name, None, 1.0, kl, size) for name, (size, kl) in figures.items()])
    assert [row.recipe for row in pareto(rows)] == ["large", "small", "middle"]


@pytest.fixture(scope="module")
def bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("forced") / "bundle"
    build_engine_bundle(plan_engine(BuildRequest(tiny_checkpoint, "fp32", "cpu-x86", output)))
    return output


def test_engines_and_models_are_read_at_the_same_places(tiny_checkpoint: Path, bundle: Path) -> None:
    model = load_model(tiny_checkpoint)
    tokenizer = Tokenizer.from_directory(tiny_checkpoint)
    builder = PromptBuilder(tokenizer, model.config)
    page = document("heldout", 0, model.config.tile_size)
    ours, theirs = engine_logits(Bundle.open(bundle), SessionOptions(threads=1)), model_logits(model)
    for make in (image_prompt, text_prompt):
        prompt = make(page, page.exchanges[0], builder)
        answer = len(tokenizer.encode_text(page.exchanges[0].answer)) + 1
        assert theirs(prompt).shape == (answer, model.config.language.vocab_size)
        np.testing.assert_allclose(ours(prompt), theirs(prompt), atol=1e-4)
        assert agreement(theirs(prompt), ours(prompt)).top1 == 1


def test_what_was_measured_is_not_measured_again(
    tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    arguments = ["recipes", str(tiny_checkpoint), "--prompts", "2", "-o", str(results)]
    assert run_program(EVAL, [*arguments, "--recipe", "int8", "--count", "2"]) == 0
    first = json.loads(results.read_text())["trials"]
    assert [t["recipe"] for t in first] == ["pytorch fp32", "int8"]
    assert first[0]["image"]["kl"] == pytest.approx(0, abs=1e-9)
    assert first[1]["bytes"] < first[0]["bytes"]
    assert run_program(EVAL, [*arguments, "--recipe", "int8", "--recipe", "fp16", "--count", "2"]) == 0
    again = json.loads(results.read_text())["trials"]
    assert again[:2] == first
    assert again[2]["recipe"] == "fp16"
    capsys.readouterr()
    assert run_program(EVAL, [*arguments, "--recipe", "int8", "--count", "3"]) == 2
    assert "results of other settings" in capsys.readouterr().err
