"""Labels, glyph targets, schedules, and one real training run of a few steps."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from nvlm_deploy.models import load_model
from nvlm_deploy.preprocess import PromptBuilder, Tokenizer
from nvlm_deploy.synthetic.canvas import Glyph
from nvlm_deploy.synthetic.documents import Exchange
from nvlm_deploy.train.batches import DocumentBatches
from nvlm_deploy.train.conversation import IGNORED_LABEL, tokenize_conversation
from nvlm_deploy.train.glyphs import CHARACTERS, GlyphHead, glyph_targets
from nvlm_deploy.train.stage import StageProgress, StageSettings, run_stage


@pytest.fixture(scope="module")
def builder(tiny_checkpoint: Path) -> PromptBuilder:
    return PromptBuilder(Tokenizer.from_directory(tiny_checkpoint), load_model(tiny_checkpoint).config)


def test_loss_counts_on_answers_and_ends_of_turn(builder: PromptBuilder) -> None:
    exchanges = [Exchange("What is it?", "fox"), Exchange("And this?", "42")]
    conversation = tokenize_conversation(builder, exchanges, tiles=3)
    counted = conversation.labels != IGNORED_LABEL
    eos = builder.tokenizer.eos_id
    answers = [*builder.tokenizer.encode_text("fox"), eos, *builder.tokenizer.encode_text("42"), eos]
    assert conversation.labels[counted].tolist() == answers
    assert np.array_equal(conversation.labels[counted], conversation.input_ids[counted])
    assert len(conversation.visual_positions) == 3 * builder.config.visual_tokens_per_tile


def test_first_turn_is_what_inference_sends(builder: PromptBuilder) -> None:
    conversation = tokenize_conversation(builder, [Exchange("What is it?", "fox")], tiles=1)
    prompt = builder.build("What is it?", [1]).input_ids
    assert np.array_equal(conversation.input_ids[: len(prompt)], prompt)


def test_glyphs_go_to_their_cells_from_left_to_right() -> None:
    glyphs = [Glyph("b", 0.30, 0.1), Glyph("a", 0.26, 0.1), Glyph("7", 0.9, 0.9)]
    targets = glyph_targets(glyphs, (2, 1), side=2)
    assert targets.shape == (3, 4, 4)
    first, second = (CHARACTERS.index(c) for c in "ab")
    assert targets[0, 1].tolist()[:2] == [first, second]
    assert targets[1, 3, 0] == CHARACTERS.index("7")
    assert (targets[2] == -100).all()


SETTINGS = StageSettings("answer", steps=6, max_lr=1e-2, min_lr=1e-3, warmup_steps=2, glyph_weight=0.1)


def train(
    checkpoint: Path, builder: PromptBuilder, log: Path, stage: StageSettings, stops: list[int]
) -> dict[str, torch.Tensor]:
    """Train in several runs; each but the last is killed when it has saved its state at a step of `stops`."""
    model, head = load_model(checkpoint), GlyphHead(64)
    torch.manual_seed(0)
    torch.nn.init.normal_(head.classes.weight, std=0.02)
    torch.nn.init.zeros_(head.classes.bias)
    progress = StageProgress()
    for stop in stops:
        data = islice(DocumentBatches(builder, builder.config, 2), progress.step, None)
        saved: list[StageProgress] = []

        def save(progress: StageProgress, saved: list[StageProgress] = saved) -> None:
            saved.append(progress)
            if progress.step < stage.steps:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            run_stage(model, head, data, stage, progress, log, save, log_every=1, save_every=stop)
        progress = saved[-1]
        assert progress.step == stop
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_loss_falls_and_frozen_parts_stand_still(
    tiny_checkpoint: Path, builder: PromptBuilder, tmp_path: Path
) -> None:
    before = load_model(tiny_checkpoint).state_dict()
    after = train(tiny_checkpoint, builder, tmp_path / "log", replace(SETTINGS, freeze=("vision",)), [6])
    rows = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("vision."), name


def test_resumed_run_equals_uninterrupted(
    tiny_checkpoint: Path, builder: PromptBuilder, tmp_path: Path
) -> None:
    whole = train(tiny_checkpoint, builder, tmp_path / "a", SETTINGS, [6])
    parts = train(tiny_checkpoint, builder, tmp_path / "b", SETTINGS, [3, 6])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
