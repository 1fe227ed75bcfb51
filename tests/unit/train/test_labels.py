"""Which tokens count, held against an example worked by hand; and one function of ids for everybody."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest

import nvlm_deploy.calibration.sample as calibration
import nvlm_deploy.train.conversation as documents
import nvlm_deploy.train.data.sample as training
from nvlm_deploy.calibration.conversation import Conversation
from nvlm_deploy.config.training import DataSection
from nvlm_deploy.preprocess import Message, PromptBuilder
from nvlm_deploy.preprocess.answered import IGNORED_LABEL, build_answered
from nvlm_deploy.runtime.bundle import Bundle
from nvlm_deploy.train.data.sample import build_train_sample
from nvlm_deploy.train.show import spans

# The tokenizer of the test has one token per byte, so a text is its bytes; four tokens are special.
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|vision_pad|>"
MESSAGES: list[Message] = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "A?"}]},
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": "B?"},
]


def by_hand(builder: PromptBuilder, newline: str) -> tuple[list[int], list[int]]:
    """The ids of a one-tile image with two questions, and their labels, piece by piece."""
    pieces: list[tuple[str, bool]] = [
        (START, False),
        ("system\nAnswer the questions.", False),
        (END + newline + START, False),
        ("user\n<Image><tile_global_thumbnail>", False),
        (PAD * builder.config.visual_tokens_per_tile, False),
        ("</Image>\nA?" + END + newline + START + "assistant\n", False),
        ("no" + END + newline, True),
        (START + "user\nB?" + END + newline + START + "assistant\n", False),
        ("yes" + END + newline, True),
    ]
    ids: list[int] = []
    labels: list[int] = []
    for text, counts in pieces:
        tokens = builder.tokenizer.encode(text)
        ids += tokens
        labels += tokens if counts else [IGNORED_LABEL] * len(tokens)
    return ids, labels


@pytest.mark.parametrize(("mode", "newline"), [("hf", ""), ("megatron", "\n")])
def test_labels_are_those_worked_by_hand(builders: dict[str, PromptBuilder], mode: str, newline: str) -> None:
    d = builders["D"]
    builder = PromptBuilder(d.tokenizer, d.config, mode)  # type: ignore[arg-type]
    answered = build_answered(builder, MESSAGES, "yes", [1])
    ids, labels = by_hand(builder, newline)
    assert answered.input_ids.tolist() == ids
    assert answered.labels.tolist() == labels
    assert (answered.labels[answered.visual_positions] == IGNORED_LABEL).all()


def test_an_answer_that_begins_with_a_newline_counts_whole(builders: dict[str, PromptBuilder]) -> None:
    answered = build_answered(builders["D"], [{"role": "user", "content": "Q"}], "\nx", [])
    counted = answered.labels[answered.labels != IGNORED_LABEL]
    tokenizer = builders["D"].tokenizer
    assert counted.tolist() == [*tokenizer.encode_text("\nx"), tokenizer.eos_id]


def test_nothing_counts_without_an_answer(builders: dict[str, PromptBuilder]) -> None:
    answered = build_answered(builders["D"], [{"role": "user", "content": "Q"}], None, [])
    assert (answered.labels == IGNORED_LABEL).all()
    assert np.array_equal(answered.input_ids, answered.prompt.input_ids)


@pytest.mark.parametrize("variant", "DXH")
def test_trainer_calibration_and_engine_have_the_same_ids(
    builders: dict[str, PromptBuilder], lines: Path, variant: str
) -> None:
    builder = builders[variant]
    conversation = Conversation.of(
        "here", [*MESSAGES, {"role": "assistant", "content": "yes"}], [lines.parent / "3.png"]
    )
    trained = build_train_sample(conversation, builder, DataSection(max_length=512))
    calibrated = calibration.build_sample(conversation, builder)
    sent = builder.build(MESSAGES, trained.tiles_per_image)
    assert np.array_equal(trained.answered.input_ids, calibrated.input_ids)
    assert np.array_equal(trained.answered.input_ids[: len(sent)], sent.input_ids)
    assert np.array_equal(trained.tiles, calibrated.tiles)
    assert (trained.answered.cross is None) == (sent.cross is None)
    if sent.cross is not None and trained.answered.cross is not None:
        assert np.array_equal(trained.answered.cross.visible, sent.cross.visible)


def test_there_is_one_function_of_ids() -> None:
    for module in (training, calibration, documents):
        assert module.build_answered is build_answered, module
    assert get_type_hints(Bundle)["prompts"] is PromptBuilder
    # What is asked comes from the builder of the engine and from nowhere else.
    assert "builder.build(messages, tiles_per_image)" in inspect.getsource(build_answered)


def test_spans_join_to_the_sequence(builders: dict[str, PromptBuilder], lines: Path) -> None:
    builder = builders["D"]
    conversation = Conversation.of(
        "here", [*MESSAGES, {"role": "assistant", "content": "yes"}], [lines.parent / "3.png"]
    )
    sample = build_train_sample(conversation, builder, DataSection(max_length=512))
    found = spans(builder.tokenizer, sample)
    assert [token for span in found for token in span.ids] == sample.answered.input_ids.tolist()
    assert [span.text for span in found if span.counts] == [f"no{END}", f"yes{END}"]
    assert sum(len(span.ids) for span in found if span.visual) == len(sample.answered.visual_positions)
